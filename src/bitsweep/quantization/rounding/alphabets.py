"""Alphabets: the values that a layer's weights may take, as codes on a grid with one scale for the layer.

Papers: Lybrand, Saab (arXiv 2010.15979); Zhang, Zhou, Saab (arXiv 2201.11113).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bitsweep.config.precision import Grid

Threshold = Literal["none", "soft", "hard"]
#: From an argument, its scale and zero point, which may be broadcast, to an integral float code.
ToCode = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Alphabet:
    """Values scale (q - zero_point) for the codes q of a grid.

    Attributes:
        scale, zero_point: of each output channel [C], or of the layer [].
        odd: only odd codes are used, which leaves out 0.
    """

    grid: Grid
    scale: Tensor
    zero_point: Tensor
    odd: bool = False


def lybrand_alphabet(weight: Tensor, grid: Grid, *, radius: float) -> Alphabet:
    """The M values C median|W| linspace(-1, 1, M), M = 3 for a ternary grid and else 2^b.

    An even M has no 0: its values are the odd codes -(M - 1), ..., M - 1 of a grid of 2 M - 1.

    Args:
        radius: C, in units of the median.
    """
    M = 3 if grid.is_ternary else 1 << grid.bits
    largest = M - 1 if M % 2 == 0 else M // 2
    return _symmetric(radius * weight.abs().median() / largest, largest, odd=M % 2 == 0)


def zhang_alphabet(weight: Tensor, grid: Grid, *, radius: float, quantile: float) -> Alphabet:
    """The values k delta, |k| <= K, with delta = C mean over outputs of quantile_p|W_row| / K.

    K is 1 for a ternary grid and else 2^(b - 1): 2^b + 1 values, two more than a grid of b bits has.

    Args:
        radius: C.
        quantile: p, in [0, 1].
    """
    K = 1 if grid.hi == 1 and grid.symmetric else 1 << (grid.bits - 1)
    ends = torch.quantile(weight.flatten(1).abs().float(), quantile, dim=1)
    return _symmetric(radius * ends.mean() / K, K)


def rounder(
    alphabet: Alphabet,
    *,
    threshold: Threshold = "none",
    sparsity: float = 0.0,
    generator: torch.Generator | None = None,
) -> ToCode:
    """What takes a value to an element of an alphabet.

    Args:
        threshold: ``hard`` sends values up to ``sparsity`` times the scale to 0; ``soft`` draws all values that much
            towards 0 first.
        sparsity: in units of the scale.
        generator: round up or down at random, so that the expectation is the value; None rounds to the nearest.
    """
    step, offset = (2, 1) if alphabet.odd else (1, 0)

    def to_code(value: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        x = value / scale
        if threshold == "soft":
            x = x.sign() * (x.abs() - sparsity).clamp(min=0)
        elif threshold == "hard":
            x = torch.where(x.abs() <= sparsity, 0.0, x)
        x = (x - offset) / step
        whole = torch.round(x) if generator is None else torch.floor(x + _uniform(x, generator))
        return (whole * step + offset + zero_point).clamp(alphabet.grid.lo, alphabet.grid.hi)

    return to_code


def _symmetric(scale: Tensor, largest: int, *, odd: bool = False) -> Alphabet:
    bits, levels = (2 * largest).bit_length(), 2 * largest + 1
    bits = max(2, bits)
    grid = Grid(bits=bits, signed=True, symmetric=True, levels=0 if levels == (1 << bits) - 1 else levels)
    # A layer of zeros: any scale will do.
    scale = torch.where(scale > 0, scale, torch.ones_like(scale)).float()
    return Alphabet(grid=grid, scale=scale, zero_point=torch.zeros_like(scale, dtype=torch.int64), odd=odd)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator, dtype=like.dtype)
