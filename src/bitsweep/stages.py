"""The stages of a cell: their names, their keys, and what needs what."""

from collections.abc import Callable
from dataclasses import dataclass

from bitsweep.cell import Cell


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A step whose result is kept.

    Attributes:
        key: which attribute of a cell is its key.
        choices: what makes it take longer or shorter, for estimates.
        quiet: whether nothing else of any sweep may compute on this machine meanwhile.
        limited: whether the time and memory limits apply.
        processes: how many do a pass together; where more than one may, its functions take their ``rank``.
    """

    name: str
    key: str
    choices: tuple[str, ...]
    quiet: bool = False
    limited: bool = True
    processes: Callable[[Cell], int] = lambda cell: 1

    def key_of(self, cell: Cell) -> str:
        """The key of this stage's result for a cell."""
        return str(getattr(cell, self.key))

    def about(self, cell: Cell) -> dict[str, str]:
        """The choices that make the stage take longer or shorter."""
        return {group: getattr(cell, group).name for group in self.choices}


DATA = Stage(name="dataset", key="dataset_key", choices=("dataset",), limited=False)
BASELINE = Stage(
    name="baseline",
    key="baseline_key",
    choices=("model", "dataset", "train"),
    limited=False,
    processes=lambda cell: cell.train.devices,
)
COMPRESSED = Stage(name="compressed", key="compressed_key", choices=("model", "dataset", "method", "precision"))
ARTIFACT = Stage(name="artifact", key="artifact_key", choices=("model", "precision", "backend"))
PROBE = Stage(name="probe", key="probe_key", choices=("precision", "backend"))
INSPECTION = Stage(name="inspection", key="key", choices=("model", "backend"))
MEASUREMENT = Stage(
    name="measurement",
    key="key",
    choices=("model", "dataset", "backend", "protocol"),
    quiet=True,
)


def needs(cell: Cell) -> list[tuple[Stage, Cell]]:
    """Every stage that the measurement of a cell rests on, in order; also those of its fp32 twin.

    Where the engine cannot run, its files are inspected instead of measured.
    """
    probes = [(PROBE, cell)] if cell.scheme.arithmetic == "integer" else []
    last = [(INSPECTION, cell)] if cell.backend.cannot_run() else [*probes, (MEASUREMENT, cell)]
    return [
        (DATA, cell),
        (BASELINE, cell),
        *((stage, each) for each in dict.fromkeys((cell.twin, cell)) for stage in (COMPRESSED, ARTIFACT)),
        *last,
    ]
