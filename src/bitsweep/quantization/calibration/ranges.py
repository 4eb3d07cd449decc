"""Range selection: from which value to which the codes of a grid are spread."""

import functools
import math
from collections.abc import Callable
from typing import Literal

import torch

from bitsweep.config.precision import Grid
from bitsweep.quantization.calibration.histograms import Histogram, histogram, moments
from bitsweep.quantization.grids import choose_qparams, fake_quantize

Range = tuple[torch.Tensor, torch.Tensor]

#: Factors by which a search shrinks a range.
SHRINK = torch.linspace(1.0, 0.1, 46, dtype=torch.float64)


def minmax_range(seen: Histogram, grid: Grid) -> Range:
    """Smallest and largest value, shapes []."""
    return _range(seen.lo, seen.hi)


def percentile_range(seen: Histogram, grid: Grid, *, percentile: float) -> Range:
    """The (100 - p)-th and p-th percentile, shapes [], interpolated within bins.

    Args:
        percentile: p, in percent, in (50, 100].
    """
    counts, zero_bin = seen.counts.clone(), -seen.first
    if seen.zeros:
        counts[zero_bin] += seen.zeros
    cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), counts.cumsum(0)])
    ends = []
    for share in (1 - percentile / 100, percentile / 100):
        rank = share * cumulative[-1]
        bin_ = int(torch.searchsorted(cumulative, rank, right=True).clamp(1, len(counts))) - 1
        within = (rank - cumulative[bin_]) / counts[bin_].clamp(min=1)
        ends.append((seen.edges[bin_] + within.clamp(0, 1) * 2.0**seen.exponent).clamp(seen.lo, seen.hi))
    return ends[0], ends[1]


def mse_range(seen: Histogram, grid: Grid) -> Range:
    """The range with the least mean squared error of quantization, shapes [].

    Ends are moved towards 0 by fixed factors, one end after the other, twice.
    """
    lo, hi = _range(min(seen.lo, 0.0), max(seen.hi, 0.0))
    if grid.symmetric:
        bounds = torch.maximum(-lo, hi) * SHRINK
        best = bounds[expected_error(seen, -bounds, bounds, grid).argmin()]
        return -best, best
    widest_lo, widest_hi = lo, hi
    for _ in range(2):
        his, last_lo = widest_hi * SHRINK, lo
        hi = his[expected_error(seen, lo.expand_as(his), his, grid).argmin()]
        if widest_lo < 0:
            los = widest_lo * SHRINK
            lo = los[expected_error(seen, los, hi.expand_as(los), grid).argmin()]
        if lo == last_lo:  # so would be all that follows
            break
    return lo, hi


def expected_error(seen: Histogram, lo: torch.Tensor, hi: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Mean squared error of quantizing the values of a histogram on S candidate ranges, float64 [S].

    Values are taken as uniform within their bin, so that the error of a bin from a to b has a closed form: with
    u = x / s + z and r = clamp(round(u), lo, hi), an antiderivative of (u - r)^2 is G(u) = r / 12 + (u - r)^3 / 3, and
    the mean error is s^3 (G(u_b) - G(u_a)) / (b - a). Exact zeros cost nothing, because 0 has a code. Images of far
    more power than others count for less: else the range would be theirs, and all others would be lost in its steps.
    """
    scale, zero_point = choose_qparams(lo, hi, grid)
    u = (seen.edges / scale.double()[:, None]).add_(zero_point[:, None])
    nearest = u.round().clamp_(grid.lo, grid.hi)
    off = u.sub_(nearest)
    antiderivative = (off * off).mul_(off).div_(3).add_(nearest, alpha=1 / 12)
    errors = scale.double() ** 3 * (antiderivative.diff(dim=1) @ seen.weighed) / 2.0**seen.exponent
    return errors / seen.total


def moving_average_range(seen: Histogram, grid: Grid, *, momentum: float = 0.9) -> Range:
    """Ends of the batches, averaged exponentially in their order, shapes [].

    Args:
        momentum: share of the past in [0, 1): m <- momentum m + (1 - momentum) end, from the first batch on.

    Paper: Jacob et al. (arXiv 1712.05877), section 3.1.
    """
    lo, hi = seen.ends[0]
    for batch_lo, batch_hi in seen.ends[1:]:
        lo, hi = momentum * lo + (1 - momentum) * batch_lo, momentum * hi + (1 - momentum) * batch_hi
    return _range(lo, hi)


def sigma_range(seen: Histogram, grid: Grid, *, sigmas: float) -> Range:
    """Mean plus and minus k standard deviations, within the values that there were, shapes [].

    Args:
        sigmas: k, positive.
    """
    mean, deviation = moments(seen)
    return _range(max(seen.lo, mean - sigmas * deviation), min(seen.hi, mean + sigmas * deviation))


def std_range(seen: Histogram, grid: Grid, *, sigmas: float) -> Range:
    """k standard deviations on each side of 0, whether or not there were values that large, shapes [].

    So that values times n = hi / (k std) are rounded to codes up to hi. Values of which all but the last digits are
    the same have no deviation to go by: their largest magnitude takes its place.

    Args:
        sigmas: k, positive.
    """
    _, deviation = moments(seen)
    reach = sigmas * deviation if deviation > 2.0**seen.exponent else max(-seen.lo, seen.hi)
    return _range(-reach, reach)


def peak_or_std_range(seen: Histogram, grid: Grid, *, sigmas: float = 4.0) -> Range:
    """The largest magnitude, or k standard deviations if that is more, on each side of 0, shapes [].

    So that values times n = min(hi / (k std), hi / max|a|) are rounded to codes up to hi: nothing is clipped, and few
    values leave room for larger ones.

    Args:
        sigmas: k, positive.
    """
    _, deviation = moments(seen)
    reach = max(-seen.lo, seen.hi, sigmas * deviation)
    return _range(-reach, reach)


def aciq_range(seen: Histogram, grid: Grid, *, distribution: Literal["laplace", "gauss"]) -> Range:
    """The range with the least expected error if values were distributed so, within the values there were, shapes [].

    What no value is below 0 of came through a rectifier: all codes lie on one side then, as if there were one bit more.

    Paper: Banner et al., "Post-training 4-bit quantization of convolution networks for rapid-deployment"
    (arXiv 1810.05723).
    """
    one_sided = seen.lo >= 0 and not grid.symmetric
    centre, deviation = moments(seen)
    if one_sided or grid.symmetric:
        # Around 0. A rectifier leaves one half of such a distribution, whose square is in the mean that of the whole.
        held = seen.counts.sum().item() if one_sided else seen.total
        centre, deviation = 0.0, math.sqrt((seen.counts @ seen.centres**2).item() / max(held, 1))
    spread = deviation / math.sqrt(2) if distribution == "laplace" else deviation
    clip = aciq_clip(grid.bits + one_sided, distribution) * spread
    return _range(max(seen.lo, centre - clip), min(seen.hi, centre + clip))


@functools.cache
def aciq_clip(bits: int, distribution: str) -> float:
    """Where to clip a centred distribution, in units of Laplace's b or Gauss's sigma, for the least expected error.

    With 2^M codes between -a and a, rounding costs a^2 / (3 4^M), and clipping twice the integral of (x - a)^2 p(x)
    from a on: 2 e^-a for Laplace with b = 1, and (a^2 + 1) erfc(a / sqrt 2) - a sqrt(2 / pi) e^(-a^2 / 2) for Gauss
    with sigma = 1.

    Args:
        bits: M, positive.
        distribution: ``laplace`` or ``gauss``.
    """
    a = torch.linspace(0.01, 30, 300_000, dtype=torch.float64)
    if distribution == "laplace":
        clipping = 2 * torch.exp(-a)
    else:
        clipping = (a**2 + 1) * torch.erfc(a / math.sqrt(2)) - a * math.sqrt(2 / math.pi) * torch.exp(-(a**2) / 2)
    return float(a[(clipping + a**2 / (3 * 4.0**bits)).argmin()])


def entropy_range(seen: Histogram, grid: Grid) -> Range:
    """The range with the least Kullback-Leibler divergence of the quantized distribution, shapes [].

    What lies outside a range counts into its end bins; the quantized distribution spreads the mass of a code evenly
    over the bins of that code that held anything. Both ends are moved towards 0 by one factor.

    Paper: Migacz, "8-bit inference with TensorRT" (GTC 2017).
    """
    lo, hi = _range(min(seen.lo, 0.0), max(seen.hi, 0.0))
    if grid.symmetric:
        hi = torch.maximum(-lo, hi)
        lo = -hi
    divergences = torch.stack([_divergence(seen, lo * factor, hi * factor, grid) for factor in SHRINK])
    factor = SHRINK[divergences.argmin()]
    return lo * factor, hi * factor


def _divergence(seen: Histogram, lo: torch.Tensor, hi: torch.Tensor, grid: Grid) -> torch.Tensor:
    scale, zero_point = choose_qparams(lo, hi, grid)
    within = (seen.edges[1:] > lo) & (seen.edges[:-1] < hi)
    if not within.any():
        return torch.tensor(math.inf, dtype=torch.float64)
    first, last = int(within.nonzero()[0]), int(within.nonzero()[-1])
    p = seen.counts[first : last + 1].clone()
    p[0] += seen.counts[:first].sum()
    p[-1] += seen.counts[last + 1 :].sum()
    codes = (torch.round(seen.centres[first : last + 1] / scale) + zero_point).clamp(grid.lo, grid.hi).long() - grid.lo
    mass, occupied = (torch.zeros(grid.hi - grid.lo + 1, dtype=torch.float64) for _ in range(2))
    # A bin counts as occupied by what fell into it, not by what was clipped: clipping must not look free of charge.
    held = (seen.counts[first : last + 1] > 0).double()
    mass.index_add_(0, codes, seen.counts[first : last + 1])
    occupied.index_add_(0, codes, held)
    q = (mass / occupied.clamp(min=1))[codes] * held
    p, q = p / p.sum(), q / q.sum()
    where = p > 0
    return (p[where] * (p[where] / q[where].clamp(min=1e-12)).log()).sum()


def _range(lo: float, hi: float) -> Range:
    return torch.tensor(lo, dtype=torch.float64), torch.tensor(hi, dtype=torch.float64)


def minmax_weight_range(weight: torch.Tensor, grid: Grid) -> Range:
    """Smallest and largest weight, shapes [C] on a per-channel grid, otherwise []."""
    if grid.per_channel:
        return torch.aminmax(weight.flatten(1), dim=1)
    return torch.aminmax(weight)


def mse_weight_range(weight: torch.Tensor, grid: Grid) -> Range:
    """The shrunken min-max range with the least squared error, for each channel or for the tensor."""
    if not grid.per_channel:
        lo, hi = _mse_rows(weight.reshape(1, -1), grid)
        return lo[0], hi[0]
    rows = weight.flatten(1)
    chunk = max(1, 2**18 // rows.shape[1])  # few enough weights to stay in the processor's cache
    parts = [_mse_rows(part, grid) for part in torch.split(rows, chunk)]
    return torch.cat([lo for lo, _ in parts]), torch.cat([hi for _, hi in parts])


def histogram_weight_range(
    weight: torch.Tensor, grid: Grid, *, choose_range: Callable[[Histogram, Grid], Range]
) -> Range:
    """The range that a rule for histograms gives, for each channel or for the tensor."""
    rows = weight.flatten(1) if grid.per_channel else weight.reshape(1, -1)
    ends = [choose_range(histogram(row), grid) for row in rows]
    lo, hi = (torch.stack([pair[end] for pair in ends]) for end in (0, 1))
    return (lo, hi) if grid.per_channel else (lo[0], hi[0])


def _mse_rows(rows: torch.Tensor, grid: Grid) -> Range:
    """Best range of each row of [C, M]."""
    lo, hi = torch.aminmax(rows, dim=1)
    best = torch.full_like(lo, math.inf)
    best_factor = torch.ones_like(lo)
    for factor in SHRINK.tolist():
        scale, zero_point = choose_qparams(lo * factor, hi * factor, grid)
        error = (fake_quantize(rows, scale, zero_point, grid) - rows).square().sum(dim=1)
        best_factor = torch.where(error < best, factor, best_factor)
        best = torch.minimum(best, error)
    return lo * best_factor, hi * best_factor
