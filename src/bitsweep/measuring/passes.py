"""The subject of every measuring pass, and the file that it writes."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitsweep.config.backend import Backend
from bitsweep.config.precision import Scheme
from bitsweep.config.protocol import MeasurementProtocol
from bitsweep.config.target import Target
from bitsweep.results import Measurement, Table
from bitsweep.runtime.store import MANIFEST

_PASSES = ("inspect", "evaluate", "measure_latency", "measure_memory")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured, and the same engine's fp32 artifact to measure it against (itself where it is that one)."""

    artifact: Path
    twin: Path
    backend: Backend
    protocol: MeasurementProtocol
    scheme: Scheme
    target: Target

    @property
    def threads(self) -> int:
        """Threads of the engine."""
        return self.protocol.threads or self.target.cores


def stored_bytes(artifact: Path, backend: Backend) -> int:
    """Bytes of an artifact's files."""
    apart = {MANIFEST, *backend.unloaded}
    return sum(file.stat().st_size for file in artifact.rglob("*") if file.is_file() and file.name not in apart)


def write_pass(
    folder: Path,
    name: str,
    metrics: dict[str, float],
    flags: list[str],
    details: dict[str, Any],
    *,
    findings: Sequence[str] = (),
    tables: Sequence[Table] = (),
) -> None:
    """Write what a pass found; metrics that are not finite are left out."""
    written = {
        "metrics": {metric: value for metric, value in metrics.items() if np.isfinite(value)},
        "flags": flags,
        "details": details,
        "findings": list(findings),
        "tables": [asdict(table) for table in tables],
    }
    (folder / f"{name}.json").write_text(json.dumps(written))


def load_measurement(folder: Path) -> Measurement:
    """Put the passes of a finished measurement together."""
    passes = [json.loads(file.read_text()) for name in _PASSES if (file := folder / f"{name}.json").exists()]
    # Measurements of version 0.1 before its release have their details under another name.
    details = {key: value for one in passes for key, value in one.get("details", one.get("notes", {})).items()}
    return Measurement(
        metrics={name: value for one in passes for name, value in one["metrics"].items()},
        flags=tuple(flag for one in passes for flag in one["flags"]),
        verdict=details.get("verdict", ""),
        findings=tuple(finding for one in passes for finding in one["findings"]),
        details=details,
        tables=tuple(Table.from_json(table) for one in passes for table in one["tables"]),
        folder=folder,
    )
