"""Range selection: from which value to which the codes of a grid are spread."""

import math
from dataclasses import dataclass

import torch

from bitsweep.axes import Grid
from bitsweep.errors import CompressionError
from bitsweep.quantization.grids import choose_qparams, fake_quantize

Range = tuple[torch.Tensor, torch.Tensor]

#: Most bins of a histogram.
BINS = 2048
#: Factors by which a search shrinks a range.
SHRINK = torch.linspace(1.0, 0.1, 46, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How often values occurred, in bounded memory and whatever the order in which they came.

    Bin i holds the values in [(first + i) w, (first + i + 1) w) for a width w = 2^exponent. As the range grows, pairs
    of bins are merged into bins of twice the width, which loses nothing but resolution.

    Attributes:
        counts: float64 [B], B <= ``BINS``; values that are exactly 0 are not in it.
        zeros: number of values that are exactly 0.
        lo, hi: smallest and largest value.
    """

    counts: torch.Tensor
    first: int
    exponent: int
    zeros: int
    lo: float
    hi: float

    @property
    def edges(self) -> torch.Tensor:
        """Edges of the bins, float64 [B + 1]."""
        return torch.arange(self.first, self.first + len(self.counts) + 1, dtype=torch.float64) * 2.0**self.exponent


def histogram(values: torch.Tensor) -> Histogram:
    """Histogram of finite values.

    Raises:
        CompressionError: a value is not finite.
    """
    lo, hi = (end.item() for end in torch.aminmax(values.detach()))
    if not (math.isfinite(lo) and math.isfinite(hi)):
        raise CompressionError("the network yields values that are not finite on its calibration images")
    exponent = _exponent(lo, hi)
    width = 2.0**exponent
    first, last = math.floor(lo / width), math.floor(hi / width)
    bins = values.detach().float().mul(1 / width).floor_().to(torch.int32).flatten().sub_(first)  # exact: 1 / w = 2^n
    counts = torch.bincount(bins, minlength=last - first + 1).double()
    zeros = values.numel() - int(torch.count_nonzero(values))
    if zeros:
        counts[-first] -= zeros
    return Histogram(counts=counts, first=first, exponent=exponent, zeros=zeros, lo=lo, hi=hi)


def merge(one: Histogram, other: Histogram) -> Histogram:
    """Histogram of the values of both."""
    lo, hi = min(one.lo, other.lo), max(one.hi, other.hi)
    exponent = max(one.exponent, other.exponent, _exponent(lo, hi))
    first, last = math.floor(lo / 2.0**exponent), math.floor(hi / 2.0**exponent)
    counts = torch.zeros(last - first + 1, dtype=torch.float64)
    for part in (one, other):
        bins = torch.arange(part.first, part.first + len(part.counts)) >> (exponent - part.exponent)
        counts.index_add_(0, (bins - first).clamp(0, last - first), part.counts)
    return Histogram(counts=counts, first=first, exponent=exponent, zeros=one.zeros + other.zeros, lo=lo, hi=hi)


def minmax_range(seen: Histogram, grid: Grid) -> Range:
    """Smallest and largest value, shapes []."""
    return torch.tensor(seen.lo, dtype=torch.float64), torch.tensor(seen.hi, dtype=torch.float64)


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
    lo, hi = (torch.tensor(end, dtype=torch.float64) for end in (min(seen.lo, 0.0), max(seen.hi, 0.0)))
    if grid.symmetric:
        bounds = torch.maximum(-lo, hi) * SHRINK
        best = bounds[expected_error(seen, -bounds, bounds, grid).argmin()]
        return -best, best
    widest_lo, widest_hi = lo, hi
    for _ in range(2):
        his = widest_hi * SHRINK
        hi = his[expected_error(seen, lo.expand_as(his), his, grid).argmin()]
        los = widest_lo * SHRINK
        lo = los[expected_error(seen, los, hi.expand_as(los), grid).argmin()]
    return lo, hi


def expected_error(seen: Histogram, lo: torch.Tensor, hi: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Mean squared error of quantizing the values of a histogram on S candidate ranges, float64 [S].

    Values are taken as uniform within their bin, so that the error of a bin from a to b has a closed form: with
    u = x / s + z and r = clamp(round(u), lo, hi), an antiderivative of (u - r)^2 is G(u) = r / 12 + (u - r)^3 / 3, and
    the mean error is s^3 (G(u_b) - G(u_a)) / (b - a). Exact zeros cost nothing, because 0 has a code.
    """
    scale, zero_point = choose_qparams(lo, hi, grid)
    u = seen.edges / scale.double()[:, None] + zero_point[:, None]
    nearest = torch.round(u).clamp(grid.lo, grid.hi)
    antiderivative = nearest / 12 + (u - nearest) ** 3 / 3
    errors = scale.double() ** 3 * (antiderivative.diff(dim=1) @ seen.counts) / 2.0**seen.exponent
    return errors / (seen.counts.sum() + seen.zeros)


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


def _exponent(lo: float, hi: float) -> int:
    """Least exponent of a bin width with which [lo, hi] takes no more than ``BINS`` bins."""
    exponent = math.ceil(math.log2(max(hi - lo, abs(lo), abs(hi), 2.0**-100) / BINS))
    while math.floor(hi / 2.0**exponent) - math.floor(lo / 2.0**exponent) >= BINS:
        exponent += 1
    return exponent
