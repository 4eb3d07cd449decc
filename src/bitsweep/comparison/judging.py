"""Whether a cell became better or worse: what one pair of measurements says, and what many say together."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import numpy as np

from bitsweep import stats
from bitsweep.comparison.evidence import CellEvidence, Timing
from bitsweep.measuring.latency import CROWDED
from bitsweep.metrics import metric_of
from bitsweep.results import Array

#: Standard deviation of the logarithm of a latency from process to process, of one program that is timed alone: 2.5 and
#: 2.7 % for the two of `tests/comparison/recorded.json`. Beside its fp32 file it is `stats.BETWEEN_PROCESSES`.
ALONE = 0.027
#: ``not compared``: the two say nothing of each other.
Verdict = Literal["better", "worse", "same", "undecided", "not compared"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What counts as worse, beyond what chance explains.

    Attributes:
        drop_pp: points of top-1 that may be lost.
        slower_pct: per cent by which a latency may grow.
        unpaired_pct: the same of a file that is the same and was timed alone: it differs with how fast the machine is.
        larger_pct: per cent by which the file may grow.
    """

    drop_pp: float = 0.0
    slower_pct: float = 1.0
    unpaired_pct: float = 15.0
    larger_pct: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One figure in two sweeps.

    Attributes:
        metric: its name.
        old, new: None where there is none.
        change, low, high: from old to new with its interval, in points for accuracies, else in per cent.
        why: what must be known of it: why it is not compared, or what it was compared by.
        p_worse, p_better: p-values of it being no worse, and no better, than the limits allow.
    """

    metric: str
    old: float | None
    new: float | None
    verdict: Verdict
    change: float | None = None
    low: float | None = None
    high: float | None = None
    why: str = ""
    p_worse: float = 1.0
    p_better: float = 1.0

    @property
    def text(self) -> str:
        """The change with its interval; why there is none."""
        if self.change is None:
            return self.why
        unit = "points" if self.metric == "top1" else "%"
        ends = f" [{self.low:+.2f}, {self.high:+.2f}]" if self.low is not None and self.high is not None else ""
        return f"{self.change:+.2f}{ends} {unit}{f' ({self.why})' if self.why else ''}"

    @property
    def shown(self) -> tuple[str, str]:
        """Old and new value; ``none`` where there is none."""
        shown = metric_of(self.metric).shown
        old, new = (shown(value) if value is not None else "none" for value in (self.old, self.new))
        return old, new

    @property
    def title(self) -> str:
        """What the metric is called."""
        batch = self.metric.partition("_b")[2]
        return f"{metric_of(self.metric).title or self.metric}{f', batch {batch}' if batch else ''}"


def judge(pairs: Sequence[tuple[CellEvidence, CellEvidence]], limits: Limits, *, level: float) -> list[list[Judged]]:
    """The figures of cells that both sweeps measured, judged together.

    Args:
        pairs: the old and the new one.
        level: how probable it may be at most that any of all cells is called worse, or better, by chance.
    """
    found = [_figures(old, new, limits, confidence=1 - level) for old, new in pairs]
    open_ones = [judged for figures in found for judged in figures if judged.p_worse < 1 or judged.p_better < 1]
    worse = stats.holm([judged.p_worse for judged in open_ones], level)
    better = stats.holm([judged.p_better for judged in open_ones], level)
    decided: dict[int, Verdict] = {}
    for judged, is_worse, is_better in zip(open_ones, worse, better, strict=True):
        # The interval beside a verdict has two sides, each of half the level.
        if (is_worse or is_better) and min(judged.p_worse, judged.p_better) <= level / 2:
            decided[id(judged)] = "worse" if is_worse else "better"
    return [
        [replace(judged, verdict=decided.get(id(judged), judged.verdict)) for judged in figures] for figures in found
    ]


def _figures(old: CellEvidence, new: CellEvidence, limits: Limits, *, confidence: float) -> list[Judged]:
    found = [_accuracy(old, new, limits, confidence=confidence), *_latencies(old, new, limits, confidence=confidence)]
    return [*found, *_size(old, new, limits)]


# --------------------------------------------------------------------------- accuracy


def _pair(metric: str, old: CellEvidence, new: CellEvidence) -> Judged:
    return Judged(metric=metric, old=old.metrics.get(metric), new=new.metrics.get(metric), verdict="not compared")


def _accuracy(old: CellEvidence, new: CellEvidence, limits: Limits, *, confidence: float) -> Judged:
    """Top-1 on the same images, by which images only one of the two has right."""
    pair = _pair("top1", old, new)
    if reason := _unlike_images(old, new):
        return replace(pair, why=reason)
    assert old.correct_N is not None and new.correct_N is not None
    n = len(new.correct_N)
    lost, gained = stats.paired_counts(old.correct_N, new.correct_N)
    low, high = stats.paired_difference_interval(gained, lost, n, confidence)
    return replace(
        pair,
        verdict="undecided" if lost or gained else "same",
        change=100 * (gained - lost) / n,
        low=100 * low,
        high=100 * high,
        why=f"of {n} images {lost} lost, {gained} gained" if lost or gained else f"the same of {n} images",
        p_worse=stats.paired_loss_p(lost, gained, n, limits.drop_pp / 100),
        p_better=stats.paired_loss_p(gained, lost, n, 0.0),
    )


def _unlike_images(old: CellEvidence, new: CellEvidence) -> str:
    missing = [which for which, cell in (("old", old), ("new", new)) if cell.correct_N is None]
    if missing:
        return f"which images the {' and the '.join(missing)} one has right is not known: measure again"
    assert old.correct_N is not None and new.correct_N is not None
    if old.images != new.images or len(old.correct_N) != len(new.correct_N):
        return f"other test images ({len(old.correct_N)} and {len(new.correct_N)})"
    return ""


# --------------------------------------------------------------------------- latency


def _latencies(old: CellEvidence, new: CellEvidence, limits: Limits, *, confidence: float) -> Iterable[Judged]:
    """The latency at every batch size that both were timed with."""
    first = min({*old.timings, *new.timings}, default=1)
    for metric in sorted(filter(is_latency, {**old.metrics, **new.metrics})):
        batch = int(metric.partition("_b")[2] or first)
        pair = _pair(metric, old, new)
        before, after = old.timings.get(batch), new.timings.get(batch)
        if old.machine != new.machine:
            yield replace(pair, why=f"measured on {old.machine} and on {new.machine}")
        elif before is None or after is None:
            yield replace(pair, why=f"the samples of the {'new' if before else 'old'} one are not known")
        else:
            same_twin = old.twin_key == new.twin_key != ""
            by_twin = bool(same_twin and before.fp32_ms and after.fp32_ms)
            alone = same_twin and not before.fp32_ms and not after.fp32_ms
            between = max(_between(cell, pair.metric) for cell in (old, new)) if by_twin else ALONE
            judged = _timed(
                pair, before, after, limits, confidence=confidence, by_twin=by_twin, alone=alone, between=between
            )
            if any(CROWDED in cell.flags for cell in (old, new)):
                judged = replace(
                    judged, verdict="undecided", p_worse=1.0, p_better=1.0, why=f"{CROWDED}: measure again"
                )
            yield judged


def is_latency(metric: str) -> bool:
    """Whether a metric is the median latency at some batch size, and not an end of its interval."""
    return re.fullmatch(r"latency_p50_ms(_b\d+)?", metric) is not None


def _timed(
    pair: Judged,
    old: Timing,
    new: Timing,
    limits: Limits,
    *,
    confidence: float,
    by_twin: bool,
    alone: bool,
    between: float,
) -> Judged:
    """The shift of block medians, which has two errors: that of the blocks, and that of the two processes.

    Where both were timed beside the same fp32 file, their ratios to the blocks of that file are compared: what slows
    the whole machine is in both.

    Args:
        between: standard deviation of a logarithm from process to process.
    """
    before, after = (_logarithms(timing, by_twin=by_twin) for timing in (old, new))
    shift, of_blocks = stats.shift(before, after)
    of_processes = math.sqrt(2) * between
    error, z = math.hypot(of_blocks, of_processes), NormalDist().inv_cdf((1 + confidence) / 2)
    slack = math.log1p(limits.slower_pct / 100)
    tolerated = max(slack, math.log1p(limits.unpaired_pct / 100)) if alone else slack
    return replace(
        pair,
        verdict="same" if abs(shift) + z * of_blocks <= max(slack, z * of_processes) else "undecided",
        change=100 * math.expm1(shift),
        low=100 * math.expm1(shift - z * error),
        high=100 * math.expm1(shift + z * error),
        why="beside fp32" if by_twin else "",
        p_worse=1 - NormalDist().cdf((shift - tolerated) / error),
        p_better=1 - NormalDist().cdf((-shift - tolerated) / error),
    )


def _between(cell: CellEvidence, metric: str) -> float:
    suffix = metric.removeprefix("latency_p50_ms")
    return cell.metrics.get(f"speedup_between{suffix}", stats.BETWEEN_PROCESSES)


def _logarithms(timing: Timing, *, by_twin: bool) -> Array:
    logarithms: Array = np.log(timing.own_ms)
    return logarithms - np.log(timing.fp32_ms) if by_twin else logarithms


# --------------------------------------------------------------------------- size


def _size(old: CellEvidence, new: CellEvidence, limits: Limits) -> Iterable[Judged]:
    pair = _pair("size_mb", old, new)
    if not pair.old or pair.new is None:
        return
    change = 100 * (pair.new / pair.old - 1)
    verdict: Verdict = "worse" if change > limits.larger_pct else "better" if change < 0 else "same"
    yield replace(pair, verdict=verdict, change=change)
