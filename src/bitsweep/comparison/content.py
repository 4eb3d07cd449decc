"""Two sweeps side by side: which cells both have, what became of each, and which of that are regressions."""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

from bitsweep.comparison.evidence import MEASURED, CellEvidence, SweepEvidence
from bitsweep.comparison.judging import ALONE, Judged, Limits, is_latency, judge
from bitsweep.config.requirement import NOTHING, Requirements
from bitsweep.report.row import HERE, Row
from bitsweep.report.verdict import Judged as JudgedLimit
from bitsweep.report.verdict import verdict_of
from bitsweep.text import some

#: ``reused``: both sweeps show one and the same measurement. ``not run``: neither has figures.
Became = Literal["worse", "better", "same", "undecided", "reused", "new", "gone", "not run"]
#: Flags with which a cell cannot be used.
_FATAL = ("diverges", "non-finite logits")
_ONCE = "measured once for both"
#: What is said of cells that both sweeps show one measurement of.
_ONE_MEASUREMENT = "one measurement in both, which says nothing of a change; remeasure=all measures again"


@dataclass(frozen=True, kw_only=True)
class ComparedCell:
    """A cell in two sweeps.

    Attributes:
        old, new: None where that sweep does not have it.
        reason: in words, where figures do not tell.
        regressions: what became worse, a line each.
        untold: the limits given to the gate of which it cannot be told whether the cell keeps them, a line each.
        name: what tells it from the other cells.
    """

    old: CellEvidence | None
    new: CellEvidence | None
    became: Became
    reason: str = ""
    figures: tuple[Judged, ...] = ()
    regressions: tuple[str, ...] = ()
    untold: tuple[str, ...] = ()
    name: str = ""

    @property
    def cell(self) -> CellEvidence:
        """The newest that is known of it."""
        cell = self.new or self.old
        assert cell is not None
        return cell

    @property
    def doubts(self) -> tuple[str, ...]:
        """What was not decided, a line each."""
        if self.became == "reused":
            return (_ONE_MEASUREMENT, *self.untold)
        undecided = (
            f"{judged.title} {judged.verdict}: {judged.text}"
            for judged in self.figures
            if judged.verdict in ("undecided", "not compared")
        )
        return (*undecided, *self.untold)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two sweeps, cell by cell."""

    old: SweepEvidence
    new: SweepEvidence
    cells: tuple[ComparedCell, ...]

    @property
    def regressions(self) -> list[tuple[str, str]]:
        """Name of a cell and what became worse."""
        return [(cell.name, line) for cell in self.cells for line in cell.regressions]

    @property
    def doubts(self) -> list[tuple[str, str]]:
        """Name of a cell and what was not decided; what is so of many cells is said once, of some of them by name."""
        names: dict[str, list[str]] = {}
        for cell in self.cells:
            for line in cell.doubts:
                names.setdefault(line, []).append(cell.name)
        return [(some(cells), line) for line, cells in names.items()]

    @property
    def reused(self) -> str:
        """What the cells say that were measured once for both sweeps; empty where none was."""
        names = [cell.name for cell in self.cells if cell.became == "reused"]
        return f"{some(names)}: {_ONE_MEASUREMENT}" if names else ""

    @property
    def summary(self) -> str:
        """How many cells became what."""
        words = {"same": "the same", "reused": _ONCE}
        counted = Counter(cell.became for cell in self.cells)
        return f"{self.old.sweep_id} -> {self.new.sweep_id}: " + ", ".join(
            f"{count} {words.get(became, became)}" for became, count in counted.items()
        )


def compare(
    old: SweepEvidence,
    new: SweepEvidence,
    limits: Limits,
    *,
    require: Requirements = NOTHING,
    demanded: frozenset[str] = frozenset(),
) -> Comparison:
    """Match the cells of two sweeps by their choices, and judge all that both measured together.

    Args:
        require: what a cell must not have begun to miss.
        demanded: names of the limits in it that every measured cell must keep, whatever it was before.
    """
    known, found = ({_identity(cell): cell for cell in sweep.cells} for sweep in (old, new))
    pairs = [(known.get(each), found.get(each)) for each in {**found, **known}]
    both = [
        (before, after)
        for before, after in pairs
        if before and after and {before.status, after.status} <= {*MEASURED} and not _one_measurement(before, after)
    ]
    judged = judge(both, limits, level=1 - new.confidence)
    figures = {_identity(after): tuple(each) for (_, after), each in zip(both, judged, strict=True)}
    cells = [_compared(before, after, figures) for before, after in pairs]
    count = sum(cell.new is not None and cell.new.status in MEASURED for cell in cells) * len(require.limits)
    cells = [_required(cell, require, demanded, confidence=new.confidence, count=count) for cell in cells]
    alike = _alike([*old.cells, *new.cells])
    named = tuple(replace(each, name=each.cell.name(without=alike)) for each in cells)
    return Comparison(old=old, new=new, cells=named)


def _alike(cells: Collection[CellEvidence]) -> set[str]:
    """The settings that all cells have alike."""
    counted = Counter(item for each in cells for item in each.cell.items())
    return {key for (key, _), count in counted.items() if count == len(cells)}


def _required(
    cell: ComparedCell, require: Requirements, demanded: frozenset[str], *, confidence: float, count: int
) -> ComparedCell:
    """The same, where a limit that a cell misses is a regression: if it did not miss it before, or it is demanded.

    Args:
        count: of all limits of all cells, which share the probability of being called missed by chance.
    """
    before, after = (_judged(side, require, confidence, shared_by=1) for side in (cell.old, cell.new))
    surely = _judged(cell.new, require, confidence, shared_by=max(1, count))
    broken, untold = [], []
    for name, judged in after.items():
        said = f"require.{name}={judged.bound:g}"
        began = name in before and before[name].state != "missed"
        missed = surely[name].state == "missed" and (began or name in demanded)
        if missed or (judged.found is None and name in demanded):
            broken.append(f"misses {said}: {surely[name].text}")
        elif judged.state != "met" and name in demanded:
            untold.append(f"{said} cannot be told: {judged.why or surely[name].text}")
    became = "worse" if broken else cell.became
    return replace(cell, regressions=(*cell.regressions, *broken), untold=tuple(untold), became=became)


def _judged(
    cell: CellEvidence | None, require: Requirements, confidence: float, *, shared_by: int
) -> dict[str, JudgedLimit]:
    """How a cell stands to each limit; nothing where it was not measured.

    Args:
        shared_by: how many intervals together have the confidence (Bonferroni).
    """
    if cell is None or cell.status not in MEASURED:
        return {}
    each = 1 - (1 - confidence) / shared_by
    metrics = {**cell.metrics, **_ends(cell.metrics, "latency_p50_ms", confidence, each, between=ALONE)}
    metrics |= _ends(cell.metrics, "speedup", confidence, each)  # has that of processes already
    row = Row(cell=cell.cell, status=cell.status, metrics=metrics, flags=cell.flags, command="", confidence=each)
    return {judged.name: judged for judged in verdict_of(row, require).judged}


def _ends(
    metrics: Mapping[str, float], name: str, confidence: float, wanted: float, *, between: float = 0.0
) -> dict[str, float]:
    """The ends of an interval of times at another confidence.

    Args:
        between: standard deviation of a logarithm from process to process, which the interval has not.
    """
    value, ends = metrics.get(name, 0.0), {end: metrics.get(f"{name}_{end}", 0.0) for end in ("low", "high")}
    if not 0 < value < math.inf or not all(0 < end < math.inf for end in ends.values()):
        return {}
    known, z = (NormalDist().inv_cdf((1 + each) / 2) for each in (confidence, wanted))
    sides = {"low": -1, "high": 1}
    return {
        f"{name}_{end}": value * math.exp(sides[end] * z * math.hypot(math.log(found / value) / known, between))
        for end, found in ends.items()
    }


def _identity(cell: CellEvidence) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({"target": HERE, **cell.cell}.items()))


def _one_measurement(old: CellEvidence, new: CellEvidence) -> bool:
    return bool(new.measurement) and old.measurement == new.measurement


def _compared(
    old: CellEvidence | None, new: CellEvidence | None, figures: dict[tuple[tuple[str, str], ...], tuple[Judged, ...]]
) -> ComparedCell:
    if new is None:
        assert old is not None
        lost = old.status in (*MEASURED, "lowered")
        missing = (f"is missing; it was {old.status}: {old.command}",)
        reason = f"it was {old.status}"
        return ComparedCell(old=old, new=None, became="gone", reason=reason, regressions=missing if lost else ())
    regressions = tuple(_without_figures(old, new))
    if old is None:
        reason = f"{new.status} {new.reason}".strip()
        return ComparedCell(old=None, new=new, became="new", reason=reason, regressions=regressions)
    compared = ComparedCell(old=old, new=new, became="undecided", figures=figures.get(_identity(new), ()))
    if new.status not in MEASURED or old.status not in MEASURED:
        became: Became = "worse" if regressions else "better" if new.status in MEASURED else "not run"
        reason = f"{old.status} -> {new.status}{f': {new.reason}' if new.reason else ''}"
        return replace(compared, became=became, reason=reason, regressions=regressions)
    if _one_measurement(old, new):
        became = "worse" if regressions else "reused"
        return replace(compared, became=became, reason=_ONCE, regressions=regressions)
    regressions += tuple(_by_figures(compared.figures))
    verdicts = [judged.verdict for judged in compared.figures]
    if regressions:
        became = "worse"
    elif "better" in verdicts:
        became = "better"
    else:
        became = "same" if verdicts and set(verdicts) == {"same"} else "undecided"
    return replace(compared, became=became, regressions=regressions)


def _without_figures(old: CellEvidence | None, new: CellEvidence) -> Iterator[str]:
    """What is lost, whatever the figures say."""
    had = old is not None and old.status in (*MEASURED, "lowered")
    if new.status in ("failed", "interrupted"):
        yield f"{new.status}: {new.reason or 'it was not run'}"
    elif new.status == "skipped" and had:
        yield f"skipped: {new.reason}"
    elif new.status == "lowered" and old is not None and old.status in MEASURED:
        yield f"was measured, and is only lowered now: {new.reason}"
    if new.status in MEASURED:
        expected = {"top1", "size_mb"} | set(filter(is_latency, old.metrics if old else ()))
        for name in sorted(expected):
            if not math.isfinite(new.metrics.get(name, math.nan)):
                yield f"{name} is missing, or not a number"
        for flag in _FATAL:
            if flag in new.flags and not (old and flag in old.flags):
                yield f"{flag} now" if old else flag


def _by_figures(figures: tuple[Judged, ...]) -> Iterator[str]:
    for judged in figures:
        if judged.verdict == "worse":
            yield f"{judged.title} {' -> '.join(judged.shown)}: {judged.text}"
        elif judged.metric == "top1" and judged.verdict == "not compared" and judged.new is not None:
            yield f"{judged.title} cannot be compared: {judged.why}"
