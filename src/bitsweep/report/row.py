"""A cell in a report, the baseline that it rests on, and the final race that it was in."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bitsweep.results import RaceTime

RowStatus = Literal["finished", "reused", "lowered", "failed", "skipped", "interrupted"]
#: The target that is this machine; sweeps from before there were targets name none.
HERE = "local"
#: Config groups that every table shows; the others only where they differ between cells.
SHOWN_GROUPS = ("model", "method", "precision", "backend")
#: Flags of cells whose figures are not those of the model that was meant.
DISQUALIFYING = frozenset({"diverges", "non-finite logits"})


@dataclass(frozen=True, kw_only=True)
class Race:
    """A final race: cells that ran in turn, the winner first.

    Attributes:
        cells: their choices; among them may be uncompressed ones that are not in the grid.
        times: how each did.
    """

    cells: tuple[dict[str, str], ...]
    times: tuple[RaceTime, ...]

    @classmethod
    def from_json(cls, race: dict[str, Any]) -> "Race":
        """The race that its fields were written of as JSON."""
        return cls(cells=tuple(race["cells"]), times=tuple(RaceTime(**time) for time in race["times"]))

    def time_of(self, cell: dict[str, str]) -> RaceTime | None:
        """How a cell did; None where it was not in it."""
        return self.times[self.cells.index(cell)] if cell in self.cells else None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A cell and how it ended.

    Attributes:
        cell: config group -> choice, and the knobs that were overridden.
        metrics: by the names of ``docs/measurement.md``; any may be missing.
        verdict: on the speed-up; empty where nothing was timed against fp32.
        findings: sentences that explain the figures.
        command: reproduces this cell alone.
        pictures: PNG files under the folder of the report.
        shown: knobs that its name shows.
        confidence: how sure its intervals are.
        batch: images of a batch whose latency it has.
        final: its time in the final race, if it was in one.
        settings: knobs that other cells set, with the value that this one has by default.
        in_grid: whether it is a cell of the grid, or else the uncompressed twin of one, known from their race.
    """

    cell: dict[str, str]
    status: RowStatus
    reason: str = ""
    log_tail: str = ""
    metrics: dict[str, float]
    flags: tuple[str, ...] = ()
    verdict: str = ""
    findings: tuple[str, ...] = ()
    scheme: str = ""
    command: str
    run_id: str = ""
    pictures: tuple[Path, ...] = ()
    shown: tuple[str, ...] = ()
    confidence: float = 0.95
    batch: int = 1
    final: RaceTime | None = None
    settings: dict[str, str] = field(default_factory=dict)
    in_grid: bool = True

    def value(self, name: str) -> str:
        """Its choice of a group, or its value of a knob; empty where it has none."""
        return self.cell.get(name) or self.settings.get(name, "")

    @property
    def measured(self) -> bool:
        """Whether there are figures; a lowered cell whose target was away has none."""
        return self.status in ("finished", "reused") or (self.status == "lowered" and bool(self.metrics))

    @property
    def not_run(self) -> bool:
        """Whether no engine ran it; a lowered one has figures all the same."""
        return self.status in ("lowered", "skipped", "interrupted")

    @property
    def believable(self) -> bool:
        """Whether it has an accuracy, and that of the model that was meant."""
        return "top1" in self.metrics and not DISQUALIFYING & set(self.flags)

    @property
    def uncompressed(self) -> bool:
        """Whether it is the baseline itself, run by an engine."""
        return (self.cell["method"], self.cell["precision"]) == ("none", "fp32")

    @property
    def name(self) -> str:
        """Model, method, precision and engine."""
        return " ".join([*(self.cell[group] for group in SHOWN_GROUPS if group != "backend"), self.engine])

    @property
    def engine(self) -> str:
        """The engine, and the device that was asked for."""
        return " on ".join([self.cell["backend"], *(self.cell[knob] for knob in self.shown if knob in self.cell)])


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A trained fp32 model that cells of the sweep rest on.

    Attributes:
        pictures: PNG files under the folder of the report.
    """

    name: str
    run_id: str
    metrics: dict[str, float]
    seconds: float
    pictures: tuple[Path, ...] = ()
