"""Histograms of the values of an activation during calibration."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from bitsweep.config.precision import Grid
from bitsweep.errors import CompressionError

#: Most bins of a histogram.
BINS = 2048
#: Values that are counted at a time.
_PIECE = 1 << 15
#: How far the power of an image may be above the median of its batch, and still count in full.
POWER = 2.0


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How often values occurred, in bounded memory and whatever the order in which they came.

    Bin i holds the values in [(first + i) w, (first + i + 1) w) for a width w = 2^exponent. As the range grows, pairs
    of bins are merged into bins of twice the width, which loses nothing but resolution.

    Attributes:
        counts: float64 [B], B <= ``BINS``; values that are exactly 0 are not in it.
        weighed: the same, where a value counts for less if its image has more than ``POWER`` times the power (the mean
            square) of the median image of its batch: by as much as makes up for it.
        zeros: number of values that are exactly 0.
        ends: smallest and largest value of each batch, in their order.
    """

    counts: torch.Tensor
    weighed: torch.Tensor
    first: int
    exponent: int
    zeros: int
    ends: tuple[tuple[float, float], ...]

    @property
    def lo(self) -> float:
        """Smallest value."""
        return min(lo for lo, _ in self.ends)

    @property
    def hi(self) -> float:
        """Largest value."""
        return max(hi for _, hi in self.ends)

    @property
    def total(self) -> float:
        """Number of values."""
        return self.counts.sum().item() + self.zeros

    @property
    def centres(self) -> torch.Tensor:
        """Centres of the bins, float64 [B]."""
        return (self.edges[:-1] + self.edges[1:]) / 2

    @property
    def edges(self) -> torch.Tensor:
        """Edges of the bins, float64 [B + 1]."""
        return torch.arange(self.first, self.first + len(self.counts) + 1, dtype=torch.float64) * 2.0**self.exponent


def histogram(values: torch.Tensor, *, of_images: bool = False) -> Histogram:
    """Histogram of finite values.

    Args:
        of_images: whether the first dimension is that of images, and each is to be weighted by its power.

    Raises:
        CompressionError: a value is not finite.
    """
    lo, hi = (end.item() for end in torch.aminmax(values.detach()))
    if not (math.isfinite(lo) and math.isfinite(hi)):
        raise CompressionError("the network yields values that are not finite on its calibration images")
    exponent = _exponent(lo, hi)
    width = 2.0**exponent
    first, last = math.floor(lo / width), math.floor(hi / width)

    def count(part: torch.Tensor) -> tuple[torch.Tensor, int]:
        part = part.detach().float().flatten()
        counts = _counts(part, 1 / width, first, last)  # exact: 1 / w = 2^n
        # NumPy counts several times faster than PyTorch does.
        zeros = len(part) - int(np.count_nonzero(part.cpu().numpy())) if lo <= 0 <= hi else 0
        if zeros:
            counts[-first] -= zeros
        return counts, zeros

    counts, zeros = count(values)
    weighed = counts.clone()
    for image, weight in _overpowering(values) if of_images else ():
        weighed -= (1 - weight) * count(values[image])[0]
    return Histogram(counts=counts, weighed=weighed, first=first, exponent=exponent, zeros=zeros, ends=((lo, hi),))


def _counts(values: torch.Tensor, per_bin: float, first: int, last: int) -> torch.Tensor:
    """How many values fall into each bin, float64; a piece at a time, which the CPU's cache holds."""
    counts = torch.zeros(last - first + 1, dtype=torch.int64, device=values.device)
    size = min(len(values), _PIECE) if values.device.type == "cpu" else len(values)
    scaled = torch.empty(size, device=values.device)
    bins = torch.empty(size, dtype=torch.int32, device=values.device)
    for start in range(0, len(values), size):
        piece = values[start : start + size]
        floats, codes = scaled[: len(piece)], bins[: len(piece)]
        torch.mul(piece, per_bin, out=floats).floor_().sub_(first)
        counts += torch.bincount(codes.copy_(floats), minlength=len(counts))
    return counts.double()


def _overpowering(values: torch.Tensor) -> list[tuple[int, float]]:
    """Images [N, ...] of far more power than the median of them, and what they are to count for."""
    power = torch.linalg.vector_norm(values.detach().flatten(1).float(), dim=1).double().square()
    weights = (POWER * power.median() / power).tolist()
    return [(image, weight) for image, weight in enumerate(weights) if weight < 1]


def merge(one: Histogram, other: Histogram) -> Histogram:
    """Histogram of the values of both; the batches of ``one`` came first."""
    lo, hi = min(one.lo, other.lo), max(one.hi, other.hi)
    exponent = max(one.exponent, other.exponent, _exponent(lo, hi))
    first, last = math.floor(lo / 2.0**exponent), math.floor(hi / 2.0**exponent)
    counts, weighed = torch.zeros(2, last - first + 1, dtype=torch.float64)
    for part in (one, other):
        bins = torch.arange(part.first, part.first + len(part.counts)) >> (exponent - part.exponent)
        bins = (bins - first).clamp(0, last - first)
        counts.index_add_(0, bins, part.counts)
        weighed.index_add_(0, bins, part.weighed)
    return Histogram(
        counts=counts,
        weighed=weighed,
        first=first,
        exponent=exponent,
        zeros=one.zeros + other.zeros,
        ends=one.ends + other.ends,
    )


def clipped_share(seen: Histogram, scale: torch.Tensor, zero_point: torch.Tensor, grid: Grid) -> float:
    """Share of the values, in [0, 1], that a grid clamps to its ends; values of a bin count as its centre."""
    codes = torch.round(seen.centres / scale.double()) + zero_point
    return float(seen.counts[(codes < grid.lo) | (codes > grid.hi)].sum()) / seen.total


def moments(seen: Histogram) -> tuple[float, float]:
    """Mean and standard deviation of the values of a histogram, each taken as at the centre of its bin."""
    mean = (seen.counts @ seen.centres).item() / seen.total
    square = (seen.counts @ seen.centres**2).item() / seen.total
    return mean, math.sqrt(max(0.0, square - mean**2))


def _exponent(lo: float, hi: float) -> int:
    """Least exponent of a bin width with which [lo, hi] takes no more than ``BINS`` bins."""
    exponent = math.ceil(math.log2(max(hi - lo, abs(lo), abs(hi), 2.0**-100) / BINS))
    while math.floor(hi / 2.0**exponent) - math.floor(lo / 2.0**exponent) >= BINS:
        exponent += 1
    return exponent
