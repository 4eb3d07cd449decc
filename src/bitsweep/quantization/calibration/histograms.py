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
_PIECE = 1 << 17
#: How far the power of an image may be above the median of its batch, and still count in full.
POWER = 2.0
#: Values of an image that are counted, at most.
SAMPLE = 1 << 14


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How often values occurred, in bounded memory and whatever the order in which they came.

    Bin i holds the values in [(first + i) w, (first + i + 1) w) for a width w = 2^exponent. As the range grows, pairs
    of bins are merged into bins of twice the width, which loses nothing but resolution.

    Attributes:
        counts: float64 [B], B <= ``BINS``; values that are exactly 0 are not in it.
        weighed: the same, where a value counts for less if its image has more than ``POWER`` times the power (the mean
            square) of the median image of its batch: by as much as makes up for it.
        zeros: number of values that are exactly 0; of a sample, what it lets expect for all.
        ends: smallest and largest value of each batch, in their order.
    """

    counts: torch.Tensor
    weighed: torch.Tensor
    first: int
    exponent: int
    zeros: float
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


def histogram(
    values: torch.Tensor, *, of_images: bool = False, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Histogram:
    """Histogram of finite values.

    Args:
        of_images: whether the first dimension is that of images. Then each is weighted by its power, and of large ones
            a sample is counted, evenly spread over all channels, rows and columns; the ends are always those of all.
        bounds: values beyond count as the bound.

    Raises:
        CompressionError: a value is not finite.
    """
    rows = _in_memory_order(values.detach()) if of_images else values.detach().reshape(1, -1)
    # With a value that is not a number, these come out as such.
    lo, hi = (min(max(end.item(), bounds[0]), bounds[1]) for end in torch.aminmax(rows))
    if not (math.isfinite(lo) and math.isfinite(hi)):
        raise CompressionError("the network yields values that are not finite on its calibration images")
    rows = (_sample(rows) if of_images else rows).float().clamp(*bounds)
    share = rows.numel() / values.numel()
    exponent = _exponent(lo, hi)
    width = 2.0**exponent
    first, last = math.floor(lo / width), math.floor(hi / width)

    def count(part: torch.Tensor) -> tuple[torch.Tensor, float]:
        counts = _counts(part.flatten(), 1 / width, first, last)  # exact: 1 / w = 2^n
        # NumPy counts several times faster than PyTorch does.
        zeros = int(np.count_nonzero(part.cpu().numpy() == 0)) if lo <= 0 <= hi else 0
        if zeros:
            counts[-first] -= zeros
        return counts / share, zeros / share

    counts, zeros = count(rows)
    weighed = counts.clone()
    for image, weight in _overpowering(rows) if of_images else ():
        weighed -= (1 - weight) * count(rows[image])[0]
    return Histogram(counts=counts, weighed=weighed, first=first, exponent=exponent, zeros=zeros, ends=((lo, hi),))


def _in_memory_order(images: torch.Tensor) -> torch.Tensor:
    """View of images [N, ...] whose axes but the first are ordered as they lie in memory."""
    return images.permute(0, *sorted(range(1, images.ndim), key=lambda axis: images.stride()[axis], reverse=True))


def _sample(images: torch.Tensor) -> torch.Tensor:
    """Some values [N, M] of each image [N, ...], evenly spread.

    What lies side by side along the last axis is taken as a whole where there are enough of such runs. The step is
    coprime with all other sizes, so that no index is left out.
    """
    *others, last = images.shape[1:] or (1,)
    run = last if others and last * max(others) <= SAMPLE else 1
    step = (images[0].numel() - 1) // SAMPLE + 1
    while step > 1 and any(math.gcd(step, size) > 1 for size in (others if run > 1 else (*others, last))):
        step += 1
    sample: torch.Tensor = images.reshape(len(images), -1, run)[:, ::step].flatten(1)
    return sample


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


def _overpowering(rows: torch.Tensor) -> list[tuple[int, float]]:
    """Images [N, M] of far more power than the median of them, and what they are to count for."""
    power = torch.linalg.vector_norm(rows, dim=1).double().square()
    weights = (POWER * power.median() / power).tolist()
    return [(image, weight) for image, weight in enumerate(weights) if weight < 1]


def merge(one: Histogram, other: Histogram) -> Histogram:
    """Histogram of the values of both; the batches of ``one`` came first."""
    lo, hi = min(one.lo, other.lo), max(one.hi, other.hi)
    exponent = max(one.exponent, other.exponent, _exponent(lo, hi))
    first, last = math.floor(lo / 2.0**exponent), math.floor(hi / 2.0**exponent)
    counts, weighed = torch.zeros(2, last - first + 1, dtype=torch.float64)
    for part in (one, other):
        if part.exponent == exponent:
            own = slice(part.first - first, part.first - first + len(part.counts))
            counts[own] += part.counts
            weighed[own] += part.weighed
        else:
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
