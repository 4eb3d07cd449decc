"""Statistics that say how far a figure can be believed. Needs numpy and the standard library only.

Shape letters: N images, K classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from bitsweep.results import Array

Verdict = Literal["faster", "slower", "not distinguishable"]
#: Standard deviation of the logarithm of a speed-up from process to process, of the same two programs: 0.4 and 1.3 %
#: for those of `tests/comparison/recorded.json`. Blocks of one process say nothing of it.
BETWEEN_PROCESSES = 0.012


def wilson_interval(successes: int, n: int, confidence: float) -> tuple[float, float]:
    """Score interval of a proportion (Wilson, JASA 22, 1927), which holds near 0 and 1, too.

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), p = successes / n, z the normal quantile.

    Raises:
        ValueError: there are no trials, or more successes than trials.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(
            f"{successes} successes in {n} trials: give at least one trial, and no more successes than that"
        )
    p, z = successes / n, NormalDist().inv_cdf((1 + confidence) / 2)
    centre = p + z * z / (2 * n)
    margin = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - margin) / scale), min(1.0, (centre + margin) / scale)


def paired_counts(correct_a_N: Array, correct_b_N: Array) -> tuple[int, int]:
    """How many images only the first, and how many only the second classifier gets right."""
    return int((correct_a_N & ~correct_b_N).sum()), int((~correct_a_N & correct_b_N).sum())


def paired_difference_interval(b: int, c: int, n: int, confidence: float) -> tuple[float, float]:
    """Interval of the difference of two shares of the same n trials, of which b and c have only one (adjusted Wald).

    d -+ z sqrt((p_b + p_c - d^2) / (n + 2)), p_b = (b + 1) / (n + 2), p_c = (c + 1) / (n + 2), d = p_b - p_c, z the
    normal quantile (Bonett and Price, Journal of Educational and Behavioral Statistics 37, 2012).
    """
    p_b, p_c, z = (b + 1) / (n + 2), (c + 1) / (n + 2), NormalDist().inv_cdf((1 + confidence) / 2)
    d = p_b - p_c
    margin = z * math.sqrt((p_b + p_c - d * d) / (n + 2))
    return max(-1.0, d - margin), min(1.0, d + margin)


def paired_loss_p(lost: int, gained: int, n: int, margin: float) -> float:
    """One-sided p-value of: of n images no more than a share of ``margin`` was lost, where some were gained, too.

    McNemar's exact test for a margin of 0; else the normal one that `paired_difference_interval` inverts.
    """
    if margin == 0:
        return mcnemar_exact_p(lost, gained) / 2 if lost > gained else 1.0
    p_lost, p_gained = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
    d = p_lost - p_gained
    return 1 - NormalDist().cdf((d - margin) / math.sqrt((p_lost + p_gained - d * d) / (n + 2)))


def shift(values_N: Array, others_M: Array) -> tuple[float, float]:
    """How far others are above some values, with its standard error (Hodges and Lehmann, Ann. Math. Stat. 34, 1963).

    The median of all differences. Its error is that of a normal variable with the same 95 % interval: those differences
    that the rank-sum test (Mann and Whitney, Ann. Math. Stat. 18, 1947) does not refuse as a shift.
    """
    n, m = len(values_N), len(others_M)
    gaps = np.sort((np.asarray(others_M)[:, None] - np.asarray(values_N)).ravel())
    z = NormalDist().inv_cdf(0.975)
    first = min(max(0, math.floor(n * m / 2 - z * math.sqrt(n * m * (n + m + 1) / 12))), n * m // 2)
    return float(np.median(gaps)), float(gaps[n * m - 1 - first] - gaps[first]) / (2 * z)


def holm(p_values: Sequence[float], level: float) -> list[bool]:
    """Which of several hypotheses are refused, so that with this probability at most any true one is.

    From the smallest p on, each is compared with the level by the number that is left (Holm, Scand. J. Stat. 6, 1979).
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    refused = [False] * len(p_values)
    for rank, index in enumerate(order):
        if p_values[index] > level / (len(order) - rank):
            break
        refused[index] = True
    return refused


def images_to_tell(b: int, c: int, n: int, *, margin: float, confidence: float) -> int | None:
    """How many trials it takes until the paired interval ends below a margin, if they go on as the n there are.

    z^2 (p_b + p_c - d^2) / (margin - d)^2, terms as in `paired_difference_interval`; None where no number is enough,
    because the difference itself is not below the margin.
    """
    p_b, p_c, z = (b + 1) / (n + 2), (c + 1) / (n + 2), NormalDist().inv_cdf((1 + confidence) / 2)
    d = p_b - p_c
    return math.ceil(z * z * (p_b + p_c - d * d) / (margin - d) ** 2) if d < margin else None


def mcnemar_exact_p(b: int, c: int) -> float:
    """Two-sided exact p-value of McNemar's test (Psychometrika 12, 1947) for discordant counts b and c.

    Twice the binomial tail P(X <= min(b, c)) of b + c fair trials, at most 1; summed in logarithms.
    """
    n, k = b + c, min(b, c)
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    largest = max(logs)
    return min(1.0, 2 * math.exp(largest) * math.fsum(math.exp(value - largest) for value in logs))


def sqnr_db(reference: Array, candidate: Array) -> float:
    """Signal-to-quantization-noise ratio 10 log10(sum r^2 / sum (r - c)^2) in decibel; infinite if nothing differs."""
    signal = np.square(reference, dtype=np.float64).sum()
    noise = np.square(np.asarray(reference, np.float64) - candidate).sum()
    if noise == 0:
        return math.inf
    return float(10 * np.log10(signal / noise)) if signal > 0 else -math.inf


def mean_kl(reference_NK: Array, logits_NK: Array) -> float:
    """Mean Kullback-Leibler divergence, in nats, of the softmax of logits from that of reference logits."""
    log_p, log_q = log_softmax(reference_NK), log_softmax(logits_NK)
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())


def log_softmax(logits_NK: Array) -> Array:
    """Logarithms of the probabilities that logits stand for, in float64 [N, K]."""
    shifted: Array = np.asarray(logits_NK, np.float64) - logits_NK.max(axis=1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def agreement(logits_a_NK: Array, logits_b_NK: Array) -> float:
    """Share of images for which both have the same top-1 class."""
    return float((logits_a_NK.argmax(axis=1) == logits_b_NK.argmax(axis=1)).mean())


def smallest_n_for_percentile(q: float, confidence: float = 0.99) -> int:
    """Fewest samples of which the largest exceeds quantile q with this confidence: 1 - q^n >= confidence.

    Below that number a percentile is not supported by the samples (p90: 44, p99: 459 at 99 %).
    """
    return math.ceil(math.log(1 - confidence) / math.log(q))


def percentile_if_supported(samples: Array, q: float) -> float | None:
    """Quantile q of the samples; None if there are too few of them."""
    return float(np.quantile(samples, q)) if len(samples) >= smallest_n_for_percentile(q) else None


def relative_iqr(samples: Array) -> float:
    """Interquartile range relative to the median."""
    low, median, high = np.quantile(samples, (0.25, 0.5, 0.75))
    return float((high - low) / median)


def median_interval(blocks: Sequence[Array], *, confidence: float, seed: int) -> tuple[float, float]:
    """Interval of the median of times that were taken in blocks, by a bootstrap of whole blocks' medians.

    Runs within a block resemble each other, so that blocks are what is resampled; the median of all runs, which that
    of the blocks' medians may differ from a little, is always within.
    """
    medians = np.array([np.median(block) for block in blocks])
    resampled = np.random.default_rng(seed).choice(medians, size=(10_000, len(medians)))
    low, high = np.quantile(np.median(resampled, axis=1), ((1 - confidence) / 2, (1 + confidence) / 2))
    median = float(np.median(np.concatenate(blocks)))
    return min(median, float(low)), max(median, float(high))


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """Baseline time by candidate time, above 1 if the candidate is faster, with its confidence interval."""

    ratio: float
    low: float
    high: float
    verdict: Verdict


def paired_speedup(
    baseline_blocks: Sequence[Array],
    candidate_blocks: Sequence[Array],
    *,
    confidence: float,
    seed: int,
    between: float = BETWEEN_PROCESSES,
    slowdown: float = 1.0,
) -> Speedup:
    """Median of paired ratios of block medians, with an interval.

    Blocks of one index ran side by side, so that a ratio is free of the machine's drift; pairs are what is resampled
    (the bootstrap of Efron, Ann. Stat. 7, 1979). To the distance of an end, as a logarithm, that of other processes is
    added, in squares. Cores that are slower than at their best may slow the one and not the other, evenly in all
    blocks: by so much the ends are further apart.

    Args:
        baseline_blocks, candidate_blocks: times, as many blocks each.
        between: standard deviation of the logarithm of the ratio from process to process.
        slowdown: how much the cores may have slowed one of the two alone; 1 or more.

    Raises:
        ValueError: the numbers of blocks differ, or there is none.
    """
    ratios = _paired_ratios(baseline_blocks, candidate_blocks)
    resampled = np.random.default_rng(seed).choice(ratios, size=(10_000, len(ratios)))
    ratio = float(np.median(ratios))
    ends = np.quantile(np.median(resampled, axis=1), ((1 - confidence) / 2, (1 + confidence) / 2))
    margin = NormalDist().inv_cdf((1 + confidence) / 2) * between
    below, above = (math.exp(math.hypot(math.log(end / ratio), margin)) for end in ends)
    low, high = ratio / below / slowdown, ratio * above * slowdown
    verdict: Verdict = "faster" if low > 1 else "slower" if high < 1 else "not distinguishable"
    return Speedup(ratio=ratio, low=low, high=high, verdict=verdict)


def undecided_speedup(baseline_blocks: Sequence[Array], candidate_blocks: Sequence[Array]) -> Speedup:
    """Median of paired ratios of blocks that say nothing of the two: the interval holds every ratio, and 1.

    Where something else decides how long a run takes, resampling measures how evenly it does so.
    """
    ratios = _paired_ratios(baseline_blocks, candidate_blocks)
    low, high = min(1.0, float(ratios.min())), max(1.0, float(ratios.max()))
    return Speedup(ratio=float(np.median(ratios)), low=low, high=high, verdict="not distinguishable")


def _paired_ratios(baseline_blocks: Sequence[Array], candidate_blocks: Sequence[Array]) -> Array:
    if len(baseline_blocks) != len(candidate_blocks) or not len(baseline_blocks):
        raise ValueError(
            f"{len(baseline_blocks)} and {len(candidate_blocks)} blocks: give as many of each, at least one"
        )
    pairs = zip(baseline_blocks, candidate_blocks, strict=True)
    return np.array([np.median(baseline) / np.median(candidate) for baseline, candidate in pairs])
