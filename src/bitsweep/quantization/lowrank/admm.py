"""Factors that lie on a grid, found by the alternating direction method of multipliers (ADMM).

Rounding the factors of a decomposition lets the errors of all factors multiply. Here every factor is chosen on its
grid given the others on theirs.

Paper: Cherniuk et al., "Quantization Aware Factorization for Deep Neural Network Compression" (arXiv 2308.04595),
with the inner iterations of Huang et al., "A Flexible and Efficient Algorithmic Framework for Constrained Matrix and
Tensor Factorization" (arXiv 1506.04209).

Shape letters: as in `bitsweep.quantization.lowrank.factorization`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitsweep.config.precision import Grid
from bitsweep.quantization import grids
from bitsweep.quantization.lowrank.factorization import Factors, damped_cholesky, normal_equations, relative_error
from bitsweep.quantization.weights import ChooseWeightRange, Codes, nearest_codes


@dataclass(frozen=True, kw_only=True)
class Solution:
    """Factors on a grid.

    Attributes:
        codes: of the weights of the layers that the factors become: A as [T, R], all others as [R, N]. A grid with a
            scale for each channel has one for each output of A, and for each component of the others.
        errors: relative error before the first sweep and after each.
    """

    codes: tuple[Codes, ...]
    errors: tuple[float, ...]


def as_weights(factor: Tensor, mode: int) -> Tensor:
    """A factor with the outputs of its layer first: A [T, R] as it is, all others as [R, N]; its own inverse."""
    return factor if mode == 0 else factor.T


def factors_of(codes: Sequence[Codes], dtype: torch.dtype = torch.float32) -> Factors:
    """What the codes of factors stand for."""
    return tuple(as_weights(each.values.to(dtype), mode) for mode, each in enumerate(codes))


def grid_of_factor(grid: Grid, mode: int) -> Grid:
    """What a factor lies on: those that become depthwise convolutions follow the first two."""
    return grid.of_weights((1, 1, 1) if mode > 1 else (1, 1))


def round_factors(factors: Factors, grid: Grid, choose_range: ChooseWeightRange) -> tuple[Codes, ...]:
    """Each factor on the codes nearest to it."""
    return tuple(
        nearest_codes(as_weights(factor, mode).contiguous(), grid_of_factor(grid, mode), choose_range)
        for mode, factor in enumerate(factors)
    )


def admm(
    tensor: Tensor,
    factors: Factors,
    grid: Grid,
    choose_range: ChooseWeightRange,
    *,
    iterations: int,
    inner_iterations: int,
    eps: float,
) -> Solution:
    """Factors on a grid with a small ||W - W^||, never further from the tensor than the rounded ones.

    For each factor M in turn, with K and G of the others as they are on the grid, and rho = tr(G) / R,

        M~ = (K + rho (M + U)) (G + rho 1)^-1,    M = round(M~ - U),    U = U + M - M~

    until M and M~ agree and M rests. U is kept from sweep to sweep. The range is chosen anew whenever it is a factor's
    turn. The error of a factor on a grid need not fall: the best of all sweeps is kept, and a sweep that ends worse
    than the first start begins again from there, with U = 0.

    Args:
        tensor: W, [T, S] or [T, S, P].
        factors: in float, to start from.
        iterations: turns of every factor.
        inner_iterations: in each turn, at most.
        eps: largest ||M - M~|| / ||M|| and ||change of M|| / ||U|| with which a turn ends.
    """
    codes = list(round_factors(factors, grid, choose_range))
    values, duals = _restart(codes, tensor.dtype)
    errors = [relative_error(tensor, tuple(values))]
    best, least = tuple(codes), errors[0]
    for _ in range(iterations):
        for mode in range(len(values)):
            K, gram = normal_equations(tensor, tuple(values), mode)
            own = grid_of_factor(grid, mode)
            cholesky = damped_cholesky(gram, 1.0)
            rho = gram.diagonal().mean()
            for iteration in range(inner_iterations):
                free = torch.cholesky_solve((K + rho * (values[mode] + duals[mode])).T, cholesky).T
                wanted = as_weights(free - duals[mode], mode).contiguous()
                if iteration == 0:
                    scale, zero_point = grids.choose_qparams(*choose_range(wanted, own), own)
                rounded = grids.quantize(wanted, scale, zero_point, own)
                codes[mode] = Codes(codes=rounded, scale=scale, zero_point=zero_point, grid=own)
                before, values[mode] = values[mode], as_weights(codes[mode].values.to(tensor.dtype), mode)
                duals[mode] = duals[mode] + values[mode] - free
                if _within(eps, values[mode] - free, values[mode]) and _within(eps, values[mode] - before, duals[mode]):
                    break
        errors.append(relative_error(tensor, tuple(values)))
        if errors[-1] < least:
            best, least = tuple(codes), errors[-1]
        if errors[-1] > errors[0]:
            codes = list(best)
            values, duals = _restart(codes, tensor.dtype)
    return Solution(codes=best, errors=tuple(errors))


def _restart(codes: Sequence[Codes], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Values of the factors, and a U of zeros for each."""
    values = factors_of(codes, dtype)
    return list(values), [torch.zeros_like(value) for value in values]


def _within(eps: float, change: Tensor, whole: Tensor) -> bool:
    return bool(torch.linalg.vector_norm(change) <= eps * torch.linalg.vector_norm(whole))
