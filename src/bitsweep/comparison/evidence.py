"""What a comparison of two sweeps reads of each cell, and the small file in which it can be kept."""

import base64
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from bitsweep.config.requirement import NOTHING, Requirements
from bitsweep.errors import UsageError
from bitsweep.report.row import SHOWN_GROUPS, RowStatus
from bitsweep.results import Array

#: Version of the file.
_FORMAT = 1
#: Statuses of cells that were measured on their engine.
MEASURED = ("finished", "reused")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Median latencies in ms of the blocks of one measurement at one batch size.

    Attributes:
        fp32_ms: of the fp32 artifact of the same engine, whose blocks ran beside the others; none where it is that one.
    """

    own_ms: tuple[float, ...]
    fp32_ms: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CellEvidence:
    """A cell with what its figures can be judged by.

    Attributes:
        cell: config group -> choice, and the knobs that were set: what cells of two sweeps are matched by.
        measurement: which measurement the figures are of; the same in two sweeps where one reused the other's.
        machine: processor, its instruction set, and threads: latencies of unlike ones are never compared.
        twin_key: of the fp32 artifact that it was timed against.
        images: digest of the test images and their labels.
        correct_N: which of them it had right, bool [N]; None where that is not known.
        timings: batch size -> latencies.
    """

    cell: dict[str, str]
    status: RowStatus
    reason: str = ""
    command: str = ""
    measurement: str = ""
    machine: str = ""
    twin_key: str = ""
    images: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    correct_N: Array | None = field(default=None, compare=False)
    timings: dict[int, Timing] = field(default_factory=dict)

    def name(self, *, without: Collection[str]) -> str:
        """Its choices, as far as tables show them, and its knobs.

        Args:
            without: knobs that need not be named, as they tell it from no other cell.
        """
        shown = [self.cell[group] for group in (*SHOWN_GROUPS, "dataset") if group in self.cell]
        knobs = {knob: value for knob, value in self.cell.items() if "." in knob and knob not in without}
        return " ".join([*shown, *(f"{knob}={value}" for knob, value in knobs.items())])


@dataclass(frozen=True, kw_only=True)
class SweepEvidence:
    """The cells of a sweep, as a comparison reads them.

    Attributes:
        confidence: how sure its intervals are.
        require: what its cells were to keep.
    """

    sweep_id: str
    command: str
    confidence: float
    cells: tuple[CellEvidence, ...]
    require: Requirements = NOTHING


def write_accepted(sweep: SweepEvidence, file: Path) -> None:
    """Write the file that later sweeps are compared with.

    Raises:
        UsageError: it cannot be written, or there is nothing to compare with.
    """
    if not any(cell.status in MEASURED for cell in sweep.cells):
        raise UsageError(f"SWEEP={sweep.sweep_id}: none of its cells was measured; nothing can be compared with it")
    content = {
        "format": _FORMAT, "sweep_id": sweep.sweep_id, "command": sweep.command, "confidence": sweep.confidence,
        "require": sweep.require.set_values, "cells": [_packed(cell) for cell in sweep.cells],
    }  # fmt: skip
    try:
        file.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise UsageError(f"{file}: cannot be written ({error.strerror}); name another file") from error


def read_accepted(file: Path) -> SweepEvidence:
    """What was written into such a file.

    Raises:
        UsageError: there is none, or something else is in it.
    """
    try:
        content = json.loads(file.read_text())
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']}, not {_FORMAT}")
        return SweepEvidence(
            sweep_id=str(content["sweep_id"]), command=str(content["command"]), confidence=float(content["confidence"]),
            cells=tuple(map(_unpacked, content["cells"])), require=Requirements(**content.get("require", {})),
        )  # fmt: skip
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror}); bitsweep accept writes one") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UsageError(f"{file}: not a file of bitsweep accept ({why}); write it again") from error


def _packed(cell: CellEvidence) -> dict[str, Any]:
    correct = cell.correct_N
    bits = None if correct is None else [len(correct), base64.b64encode(np.packbits(correct).tobytes()).decode()]
    plain = {**asdict(cell), "correct_N": bits}
    for timing in plain["timings"].values():
        for which, times in timing.items():
            timing[which] = [float(f"{time:.6g}") for time in times]
    return plain


def _unpacked(packed: Mapping[str, Any]) -> CellEvidence:
    if packed["status"] not in get_args(RowStatus):
        raise ValueError(f"status {packed['status']}")
    correct = None
    if packed["correct_N"] is not None:
        count, bits = packed["correct_N"]
        unpacked = np.unpackbits(np.frombuffer(base64.b64decode(bits, validate=True), np.uint8))
        if not 0 < count <= len(unpacked) < count + 8:
            raise ValueError(f"{count} images, but {len(unpacked)} bits")
        correct = unpacked[:count].astype(bool)
    timings = {
        int(batch): Timing(own_ms=tuple(map(float, timing["own_ms"])), fp32_ms=tuple(map(float, timing["fp32_ms"])))
        for batch, timing in packed["timings"].items()
    }
    metrics = {str(name): float(value) for name, value in packed["metrics"].items() if math.isfinite(value)}
    plain = {"flags": tuple(map(str, packed["flags"])), "metrics": metrics, "correct_N": correct, "timings": timings}
    return CellEvidence(**{**packed, **plain})
