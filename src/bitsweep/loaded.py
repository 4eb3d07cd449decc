"""A sweep that was run, read back: a table with a row a cell, and of each cell what its figures rest on."""

import difflib
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from bitsweep.errors import UsageError
from bitsweep.report import Row, SweepReport
from bitsweep.results import LATENCY_SAMPLES, Array
from bitsweep.text import counted
from bitsweep.tracking.connection import Connection
from bitsweep.tracking.described import LABELS

if TYPE_CHECKING:
    import pandas

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class SweepResults:
    """What a sweep found.

    Attributes:
        report: its whole content.
    """

    report: SweepReport
    connection: Connection

    def frame(self) -> "pandas.DataFrame":
        """A row a cell: choices and knobs, how it ended, flags, and metrics with their intervals.

        Columns of metrics are called by the names of ``docs/measurement.md``, which end in their units. They hold
        numbers, NaN where a cell has none.
        """
        return self.report.frame()

    def cell(self, number: int | None = None, /, **choices: str | float) -> "CellResults":
        """One cell, with what its figures rest on.

        Args:
            number: of its row in `frame`.
            choices: or what tells it from the others: ``precision="int8", backend="openvino"``. Knobs have a point in
                their names: ``**{"method.percentile": 99.9}``.

        Raises:
            UsageError: there is no such cell, or several.
        """
        rows = self.report.rows
        if number is not None:
            if not -len(rows) <= number < len(rows):
                raise UsageError(f"cell({number}): the sweep has {counted(len(rows), 'cell')}, numbered from 0")
            return CellResults(row=rows[number], connection=self.connection)
        known = list(dict.fromkeys(name for row in rows for name in row.cell))
        for name in choices:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"
                raise UsageError(f"cell({name}={choices[name]}): no such choice; {hint}")
        wanted = {name: str(value) for name, value in choices.items()}
        found = [row for row in rows if wanted.items() <= row.cell.items()]
        asked = ", ".join(f"{name}={value}" for name, value in wanted.items())
        if not found:
            values = {name: sorted({row.cell[name] for row in rows if name in row.cell}) for name in wanted}
            there = "; ".join(f"{name} is {', '.join(each)}" for name, each in values.items())
            raise UsageError(f"cell({asked}): no such cell; in this sweep {there or 'there is none'}")
        if len(found) > 1:
            differing = [name for name in known if len({row.cell.get(name) for row in found}) > 1]
            hint = f"they differ in {', '.join(differing)}" if differing else "give the number of its row"
            raise UsageError(f"cell({asked}): {len(found)} cells; {hint}")
        return CellResults(row=found[0], connection=self.connection)


@dataclass(frozen=True, kw_only=True)
class CellResults:
    """What the figures of one cell rest on. Files are read from MLflow when they are asked for.

    Attributes:
        row: how it ended, its metrics, flags and findings.
    """

    row: Row
    connection: Connection

    @property
    def metrics(self) -> dict[str, float]:
        """Its figures, by the names of ``docs/measurement.md``."""
        return self.row.metrics

    @property
    def pictures(self) -> tuple[Path, ...]:
        """PNG files: confusion matrix, feature maps, histograms, latencies and others."""
        return self.row.pictures

    @property
    def layers(self) -> "pandas.DataFrame":
        """A row a layer: formats of its weights and activations, bits, ranges, what was clipped, and why.

        Raises:
            UsageError: nothing was measured.
        """
        import pandas

        return pandas.DataFrame(self._read("layers.json", lambda file: json.loads(file.read_text())))

    @property
    def logits(self) -> Array:
        """What the artifact gave for each test image, float32 [N, K].

        Raises:
            UsageError: nothing ran.
        """
        return self._read("logits.npy", lambda file: np.load(file, allow_pickle=False))

    @property
    def predictions(self) -> "pandas.DataFrame":
        """A row a test image: ``label`` and ``predicted`` as numbers of classes, and the ``probability`` of the latter.

        Raises:
            UsageError: nothing ran.
        """
        import pandas
        from scipy.special import softmax

        logits_NK = self.logits
        labels_N = self._read(LABELS, lambda file: np.load(file, allow_pickle=False))
        probability_N = softmax(logits_NK, axis=1).max(1)
        predicted_N = logits_NK.argmax(1)
        return pandas.DataFrame({"label": labels_N, "predicted": predicted_N, "probability": probability_N})

    @property
    def latency_samples(self) -> "pandas.DataFrame":
        """A row a run that was timed: ``of`` (``cell`` or ``fp32``, its twin), ``batch``, ``block`` and ``ms``.

        Raises:
            UsageError: nothing was timed.
        """
        import pandas

        samples = self._read(LATENCY_SAMPLES, _arrays)
        parts = []
        for name in samples:
            which, _, batch = name.removesuffix("_ms").partition("_b")
            if not name.endswith("_ms"):
                continue
            lengths = samples[f"{which}_b{batch}_block_lengths"]
            of, block = "cell" if which == "candidate" else which, np.repeat(np.arange(len(lengths)), lengths)
            parts.append(pandas.DataFrame({"of": of, "batch": int(batch), "block": block, "ms": samples[name]}))
        return pandas.concat(parts, ignore_index=True)

    @property
    def tables(self) -> "dict[str, pandas.DataFrame]":
        """Tables that its method and its measurement recorded, by their names, e.g. ``sensitivity``."""
        import pandas

        with self.connection.explained():
            listed = self.connection.client.list_artifacts(self.row.run_id, "records") if self.row.run_id else []
        files = [Path(found.path) for found in listed if found.path.endswith(".csv")]
        texts = {file.stem: self._read(file.as_posix(), lambda path: path.read_text()) for file in files}
        return {name: pandas.read_csv(io.StringIO(text)) for name, text in texts.items()}

    def _read(self, name: str, load: Callable[[Path], T]) -> T:
        """What a file of its run holds."""
        run_id, client = self.row.run_id, self.connection.client
        with self.connection.explained(), tempfile.TemporaryDirectory() as folder:
            if not run_id or (
                not any(found.path == name for found in client.list_artifacts(run_id)) and "/" not in name
            ):
                raise UsageError(f"{self.row.name}: it is {self.row.status}, and has no {name}")
            return load(Path(client.download_artifacts(run_id, name, folder)))


def _arrays(file: Path) -> dict[str, Array]:
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)
