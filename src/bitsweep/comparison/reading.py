"""Reading what a comparison needs of a sweep: from the tracking store, or from the file of an accepted one."""

import hashlib
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bitsweep.comparison.evidence import CellEvidence, SweepEvidence, Timing, read_accepted
from bitsweep.report.row import Row
from bitsweep.results import LATENCY_SAMPLES, Array
from bitsweep.tracking.connection import Connection
from bitsweep.tracking.described import LABELS, TWIN
from bitsweep.tracking.reading import find_sweep, read_rows, requirements_of

if TYPE_CHECKING:
    from mlflow.entities import Run

_LOGITS = "logits.npy"


def read_evidence(word: str) -> SweepEvidence:
    """The cells of a sweep with what they can be judged by.

    Args:
        word: of the sweep, see `bitsweep.tracking.reading.find_sweep`, or a file that `bitsweep accept` wrote.

    Raises:
        UsageError: there is no such thing.
    """
    if word.endswith(".json"):
        return read_accepted(Path(word))
    connection = Connection(read_only=True)
    sweep = find_sweep(connection, word)
    with connection.explained():
        rows = read_rows(connection, sweep)
        return SweepEvidence(
            sweep_id=sweep.data.tags["sweep"],
            command=sweep.data.tags["command"],
            confidence=max((row.confidence for row in rows), default=0.95),
            cells=tuple(_evidence(connection, row) for row in rows),
            require=requirements_of(sweep),
        )


def _evidence(connection: Connection, row: Row) -> CellEvidence:
    run = connection.run(row.run_id) if row.run_id else None
    known = CellEvidence(
        cell=row.cell,
        status=row.status,
        reason=row.reason,
        command=row.command,
        metrics={name: value for name, value in row.metrics.items() if math.isfinite(value)},
        flags=row.flags,
    )
    return _judgeable(connection, known, run) if run and row.measured else known


def _judgeable(connection: Connection, known: CellEvidence, run: "Run") -> CellEvidence:
    """The same with what its run has of predictions and samples."""
    params, tags = run.data.params, run.data.tags
    with tempfile.TemporaryDirectory() as scratch:
        there = {file.path for file in connection.client.list_artifacts(run.info.run_id)}
        files = {
            name: Path(connection.client.download_artifacts(run.info.run_id, name, scratch))
            for name in (_LOGITS, LABELS, LATENCY_SAMPLES)
            if name in there
        }
        # Latencies are never twice the same: they tell measurements apart also where one was logged again.
        identity = files.get(LATENCY_SAMPLES) or files.get(_LOGITS)
        correct = None
        if _LOGITS in files and LABELS in files:
            correct = np.load(files[_LOGITS]).argmax(1) == np.load(files[LABELS])
        return replace(
            known,
            measurement=hashlib.sha256(identity.read_bytes()).hexdigest() if identity else run.info.run_id,
            machine=f"{params.get('device', '?')} ({tags.get('isa', '?')}), {params.get('threads', '?')} threads",
            twin_key=tags.get(TWIN, ""),
            images=_images(run),
            correct_N=correct,
            timings=_timings(files[LATENCY_SAMPLES]) if LATENCY_SAMPLES in files else {},
        )


def _images(run: "Run") -> str:
    used = run.inputs.dataset_inputs if run.inputs else []
    return next((str(each.dataset.digest) for each in used), "")


def _timings(file: Path) -> dict[int, Timing]:
    found = {}
    with np.load(file) as samples:
        for name in samples.files:
            if name.startswith("candidate_b") and name.endswith("_ms"):
                size = int(name.removeprefix("candidate_b").removesuffix("_ms"))
                own, fp32 = (_block_medians(dict(samples), f"{which}_b{size}") for which in ("candidate", "fp32"))
                found[size] = Timing(own_ms=own, fp32_ms=fp32)
    return found


def _block_medians(samples: dict[str, Array], prefix: str) -> tuple[float, ...]:
    if f"{prefix}_ms" not in samples:
        return ()
    ends = np.cumsum(samples[f"{prefix}_block_lengths"])[:-1]
    return tuple(float(np.median(block)) for block in np.split(samples[f"{prefix}_ms"], ends))
