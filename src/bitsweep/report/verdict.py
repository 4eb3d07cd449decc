"""Whether a cell keeps the limits that are required of it, by the interval of each figure.

A limit is kept where the whole interval is on its side, and missed where none of it is. In between nothing can be told.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from bitsweep.config.requirement import Requirements
from bitsweep.measuring.latency import CROWDED, EMULATED
from bitsweep.report.row import DISQUALIFYING, Row
from bitsweep.results import AT_CHANCE
from bitsweep.stats import paired_difference_interval, wilson_interval

State = Literal["met", "missed", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure and its interval, of which both ends are the figure itself where it is exact."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What a requirement limits.

    Attributes:
        metric: that the figure is of.
        unit: that its figures are shown with.
        most: whether the figure is to be no more, or else no less.
        form: how figures are shown.
        of: the figure of a row; None where there is none.
    """

    metric: str
    unit: str
    most: bool
    form: str
    of: Callable[[Row], Estimate | None]

    def shown(self, value: float) -> str:
        """A figure as text, without the unit."""
        return format(value, self.form)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """How a cell stands to one limit.

    Attributes:
        name: of the limit, e.g. ``drop_pp``.
        bound: its value.
        found: None where there is no figure.
        why: what keeps the figure from being believed; empty where nothing does.
    """

    name: str
    bound: float
    found: Estimate | None
    why: str = ""

    @property
    def limit(self) -> Limit:
        """What is limited."""
        return LIMITS[self.name]

    @property
    def state(self) -> State:
        """Whether it is met, missed, or cannot be told."""
        if self.found is None or self.why:
            return "unknown"
        best, worst = (self.found.low, self.found.high) if self.limit.most else (-self.found.high, -self.found.low)
        bound = self.bound if self.limit.most else -self.bound
        return "met" if worst <= bound else "missed" if best > bound else "unknown"

    @property
    def excess(self) -> float:
        """By how much the figure is on the wrong side, in its unit; negative on the right one."""
        assert self.found
        return (self.found.value - self.bound) * (1 if self.limit.most else -1)

    @property
    def needed(self) -> float:
        """The least demanding value of the limit that would be met for certain."""
        assert self.found
        return self.found.high if self.limit.most else self.found.low

    @property
    def text(self) -> str:
        """The figure with its interval."""
        if self.found is None:
            return "not measured"
        value, low, high = (self.limit.shown(each) for each in (self.found.value, self.found.low, self.found.high))
        return value if self.found.low == self.found.high else f"{value} [{low}, {high}]"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a cell stands to all limits that are set."""

    judged: tuple[Judged, ...]

    def of(self, state: State) -> list[Judged]:
        """The limits with a state."""
        return [each for each in self.judged if each.state == state]

    @property
    def state(self) -> State:
        """``met`` if all are, ``missed`` if any is, else ``unknown``."""
        return "missed" if self.of("missed") else "unknown" if self.of("unknown") else "met"

    def __str__(self) -> str:
        missed, unknown = self.of("missed"), self.of("unknown")
        if missed:
            return "misses " + ", ".join(
                f"{each.name} by {each.limit.shown(abs(each.excess)).lstrip('+')}" for each in missed
            )
        if unknown:
            return "cannot be told: " + ", ".join(
                f"{each.name} {each.why or each.text.removeprefix(each.text.partition(' [')[0]).strip() or each.text}"
                for each in unknown
            )
        return "meets"


def verdict_of(row: Row, require: Requirements) -> Verdict:
    """How a measured row stands to the limits."""
    return Verdict(judged=tuple(judge(row, name, bound) for name, bound in require.limits.items()))


def judge(row: Row, name: str, bound: float) -> Judged:
    """How a row stands to one limit."""
    found = LIMITS[name].of(row)
    flags = list(row.flags)
    if name == "p50_ms" and row.final:
        flags = [flag for flag in flags if flag != CROWDED] + [CROWDED] * row.final.crowded
    doubts = DISQUALIFYING | {AT_CHANCE} if name in ("drop_pp", "top1") else {CROWDED, EMULATED}
    if name in ("size_mb", "rss_mb"):
        doubts = set()
    return Judged(name=name, bound=bound, found=found, why=", ".join(flag for flag in flags if flag in doubts))


def stricter(one: Requirements, other: Requirements) -> Requirements:
    """The limits of both; of one that both set, the value that is harder to keep."""
    bounds: dict[str, Any] = dict(one.limits)
    for name, bound in other.limits.items():
        known = bounds.get(name, bound)
        bounds[name] = min(known, bound) if LIMITS[name].most else max(known, bound)
    return Requirements(**bounds)


def judged_on(row: Row) -> tuple[str, int]:
    """The images that a row's accuracy is judged on, ``validation`` or ``test``, and how many they are."""
    on = "validation" if "validation_images" in row.metrics else "test"
    return on, int(row.metrics.get(f"{on}_images", 0))


def accuracy(row: Row) -> float:
    """Share of the images that a row is judged on that it has right."""
    return row.metrics["validation_top1" if judged_on(row)[0] == "validation" else "top1"]


def discordant(row: Row) -> tuple[int, int, int] | None:
    """Of the images that a row is judged on: those that it lost against its baseline, those that it gained, and all."""
    on, n = judged_on(row)
    drop_pp, flips = ("validation_drop_pp", "validation_flips") if on == "validation" else ("top1_drop_pp", "flips")
    if not n or drop_pp not in row.metrics:
        return None
    net, both = round(row.metrics[drop_pp] * n / 100), round(row.metrics[flips])
    return (both + net) // 2, (both - net) // 2, n


def drop_pp(row: Row) -> Estimate | None:
    """Points of top-1 that a row lost against its baseline, by its paired interval.

    What is not compressed is the baseline itself, run by an engine: it has lost nothing.
    """
    if row.uncompressed and "top1" in row.metrics:
        return Estimate(value=0.0, low=0.0, high=0.0)
    if (counts := discordant(row)) is None:
        return None
    lost, gained, n = counts
    low, high = paired_difference_interval(lost, gained, n, row.confidence)
    return Estimate(value=100 * (lost - gained) / n, low=100 * low, high=100 * high)


def latency_ms(row: Row) -> Estimate | None:
    """Median latency: that of the final race where the row was in it."""
    if row.final:
        return Estimate(value=row.final.p50_ms, low=row.final.low_ms, high=row.final.high_ms)
    return _with_ends(row, "latency_p50_ms")


def _top1(row: Row) -> Estimate | None:
    n = judged_on(row)[1]
    if not n or "top1" not in row.metrics:
        return None
    low, high = wilson_interval(round(accuracy(row) * n), n, row.confidence)
    return Estimate(value=accuracy(row), low=low, high=high)


def _speedup(row: Row) -> Estimate | None:
    if row.uncompressed and "latency_p50_ms" in row.metrics:
        return Estimate(value=1.0, low=1.0, high=1.0)
    return _with_ends(row, "speedup")


def _with_ends(row: Row, name: str) -> Estimate | None:
    if f"{name}_low" not in row.metrics:
        return None
    return Estimate(value=row.metrics[name], low=row.metrics[f"{name}_low"], high=row.metrics[f"{name}_high"])


def _exact(name: str) -> Callable[[Row], Estimate | None]:
    def figure(row: Row) -> Estimate | None:
        value = row.metrics.get(name)
        return None if value is None else Estimate(value=value, low=value, high=value)

    return figure


#: Name of a limit -> what it limits.
LIMITS = {
    "drop_pp": Limit(metric="top1_drop_pp", unit="points", most=True, form="+.2f", of=drop_pp),
    "top1": Limit(metric="top1", unit="of the images", most=False, form=".4f", of=_top1),
    "p50_ms": Limit(metric="latency_p50_ms", unit="ms", most=True, form=".3g", of=latency_ms),
    "speedup": Limit(metric="speedup", unit="times", most=False, form=".2f", of=_speedup),
    "size_mb": Limit(metric="size_mb", unit="MB", most=True, form=".3g", of=_exact("size_mb")),
    "rss_mb": Limit(metric="peak_rss_mb", unit="MB", most=True, form=".3g", of=_exact("peak_rss_mb")),
}
