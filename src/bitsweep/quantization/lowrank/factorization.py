"""Tensors as sums of products of vectors: the float factors of linear layers and convolutions.

A matrix W [T, S] or a tensor W [T, S, P] is approximated by R components,

    W_ts = sum_r A_tr B_sr,    W_tsp = sum_r A_tr B_sr C_pr,

held as factors A [T, R], B [S, R] and C [P, R]. For a matrix the singular value decomposition is the best there is;
for a tensor alternating least squares start from two nested ones.

Papers: Lebedev et al., "Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition" (arXiv 1412.6553);
Phan et al., "Stable Low-rank Tensor Decomposition for Compression of Convolutional Neural Network" (arXiv 2008.05441).

Shape letters: T output channels, S input channels, P positions of a kernel, R components.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Factors = tuple[Tensor, ...]


def khatri_rao(factors: Sequence[Tensor]) -> Tensor:
    """Products of the columns of factors [N1, R], [N2, R], ...: [N1 N2 ..., R], the last index running fastest."""
    return functools.reduce(lambda left, right: (left[:, None] * right[None]).flatten(0, 1), factors)


def reconstruct(factors: Factors) -> Tensor:
    """The tensor that factors stand for."""
    return (factors[0] @ khatri_rao(factors[1:]).T).reshape([len(factor) for factor in factors])


def relative_error(tensor: Tensor, factors: Factors) -> float:
    """||W - W^|| / ||W||; 0 where nothing differs, ``inf`` where W alone is 0."""
    off, norm = (torch.linalg.vector_norm(each).item() for each in (tensor - reconstruct(factors), tensor))
    return off / norm if norm else math.inf if off else 0.0


def normal_equations(tensor: Tensor, factors: Factors, mode: int) -> tuple[Tensor, Tensor]:
    """K = W_(mode) Z and G = Z^T Z, with Z the Khatri-Rao product of all other factors.

    ||W - W^||^2 = ||W||^2 - 2 <M, K> + <M G, M> for the factor M of this mode, which is least where M G = K.

    Returns:
        K [N, R] and G [R, R].
    """
    others = sorted((each for each in range(tensor.ndim) if each != mode), key=lambda each: len(factors[each]))
    gram = functools.reduce(torch.mul, (factors[each].T @ factors[each] for each in others))
    longest = others.pop()
    K = torch.tensordot(tensor, factors[longest], dims=([longest], [0]))  # Z itself would be large
    for each in others:
        K = (K * factors[each]).sum(1) if each > mode else (K * factors[each][:, None]).sum(0)
    return K, gram


@dataclass(frozen=True, kw_only=True)
class Components:
    """Orthonormal components of a tensor, the largest first.

    Attributes:
        sizes: float [M], whose squares add up to ||W||^2.
        directions: factors with columns of length 1, M components.
    """

    sizes: Tensor
    directions: Factors

    def largest(self, rank: int) -> Factors:
        """Factors of the largest components, all of a component with columns of the same length."""
        share = self.sizes[:rank] ** (1 / len(self.directions))
        return tuple(factor[:, :rank] * share for factor in self.directions)


def orthogonal_components(tensor: Tensor) -> Components:
    """Components from the singular value decomposition of a matrix, or from two nested ones of a tensor [T, S, P].

    The outer one separates positions from channels, W_tsp = sum_i V_tsi C_pi, and the inner ones each V_i [T, S].
    """
    if tensor.ndim == 2:
        left, sizes, right = torch.linalg.svd(tensor, full_matrices=False)
        return Components(sizes=sizes, directions=(left, right.T))
    T, S, _ = tensor.shape
    slices, spread, positions = torch.linalg.svd(tensor.flatten(0, 1), full_matrices=False)  # [T S, I], [I], [I, P]
    left, sizes, right = torch.linalg.svd((slices * spread).T.reshape(-1, T, S), full_matrices=False)
    order = sizes.flatten().argsort(descending=True, stable=True)
    inner = sizes.shape[1]
    return Components(
        sizes=sizes.flatten()[order],
        directions=(
            left.permute(1, 0, 2).flatten(1)[:, order],
            right.permute(2, 0, 1).flatten(1)[:, order],
            positions.T[:, order // inner],
        ),
    )


def rank_of_ratio(shape: torch.Size, ratio: float) -> int:
    """The largest rank, but at least 1, whose factors have no more than a share of the numbers of the tensor.

    Args:
        ratio: in (0, 1).
    """
    return max(1, math.floor(ratio * math.prod(shape) / sum(shape)))


def rank_of_energy(sizes: Tensor, energy: float) -> int:
    """How many of the largest components hold a share of ||W||^2.

    Args:
        sizes: of orthonormal components, the largest first.
        energy: in (0, 1).
    """
    squares = sizes.double().square().cumsum(0)
    return int((squares < energy * squares[-1]).sum()) + 1


def decompose(tensor: Tensor, start: Factors, *, iterations: int, correction_iterations: int) -> Factors:
    """Float factors of the rank of the start: of a matrix the start itself, which nothing is better than.

    Args:
        start: the largest orthonormal components.
        iterations: of alternating least squares.
        correction_iterations: of the error-preserving correction after them.
    """
    if tensor.ndim == 2:
        return start
    fitted = least_squares(tensor, start, iterations=iterations)
    corrected = smallest_components(tensor, fitted, iterations=correction_iterations)
    return tuple(factor.to(tensor.dtype) for factor in corrected)


def least_squares(tensor: Tensor, factors: Factors, *, iterations: int, damping: float = 1e-9) -> Factors:
    """Alternating least squares: each factor in turn solves M (G + lambda 1) = K, with the others as they are.

    Args:
        factors: to start from.
        iterations: how often all factors are solved for.
        damping: lambda as a share of the mean of G's diagonal.

    Returns:
        Factors, float64, no further from the tensor than those given (up to the damping).
    """
    tensor, found = tensor.double(), [factor.double() for factor in factors]
    for _ in range(iterations):
        for mode in range(len(found)):
            found = list(balanced(tuple(found)))
            K, gram = normal_equations(tensor, tuple(found), mode)
            found[mode] = torch.cholesky_solve(K.T, damped_cholesky(gram, damping)).T
    return balanced(tuple(found))


def smallest_components(tensor: Tensor, factors: Factors, *, iterations: int) -> Factors:
    """Error-preserving correction: factors as close to the tensor, of components that cancel each other less.

    Minimises sum_r ||a_r||^2 ||b_r||^2 ||c_r||^2 subject to ||W - W^|| staying where it is: each factor in turn, the
    columns of the others having length 1, is M = K (G + lambda 1)^-1 with the largest lambda >= 0 that the bound lets.
    Large components that cancel leave little of themselves after rounding.

    Args:
        iterations: how often all factors are solved for.
    """
    tensor, found = tensor.double(), [factor.double() for factor in factors]
    total = tensor.square().sum()
    bound = (tensor - reconstruct(tuple(found))).square().sum()
    for _ in range(iterations):
        for mode in range(len(found)):
            lengths = [torch.linalg.vector_norm(factor, dim=0) for factor in found]
            found = [factor / length.clamp(min=1e-300) for factor, length in zip(found, lengths, strict=True)]
            found[mode] = found[mode] * torch.stack(lengths).prod(0)
            K, gram = normal_equations(tensor, tuple(found), mode)
            eigenvalues, vectors = torch.linalg.eigh(gram)
            rotated = K @ vectors
            squares = rotated.square().sum(0)
            shift = _largest_shift(eigenvalues.clamp(min=0), squares, total, bound)
            if shift > 0:
                found[mode] = (rotated / (eigenvalues.clamp(min=0) + shift)) @ vectors.T
    return balanced(tuple(found))


def _largest_shift(eigenvalues: Tensor, squares: Tensor, total: Tensor, bound: Tensor) -> float:
    """The largest lambda for which the squared error of K (G + lambda 1)^-1 is within the bound, by bisection."""

    def within(shift: float) -> bool:
        inverse = 1 / (eigenvalues + shift)
        return bool(total - (squares * inverse * (2 - eigenvalues * inverse)).sum() <= bound)

    largest = eigenvalues.max().item()
    low, high = largest * 1e-14, largest * 1e6
    if largest == 0 or not within(low) or within(high):
        return 0.0
    while high / low > 1 + 1e-6:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if within(middle) else (low, middle)
    return low


def balanced(factors: Factors) -> Factors:
    """The same components, the columns of each having the same length in all factors."""
    lengths = [torch.linalg.vector_norm(factor, dim=0) for factor in factors]
    share = torch.stack(lengths).prod(0).pow(1 / len(factors))
    smallest = torch.finfo(share.dtype).tiny
    return tuple(factor * (share / length.clamp(min=smallest)) for factor, length in zip(factors, lengths, strict=True))


def damped_cholesky(gram: Tensor, damping: float) -> Tensor:
    """Lower Cholesky factor of G + damping mean(diag G) 1, or of 1 where G is 0."""
    mean = gram.diagonal().mean().item()
    identity = torch.eye(len(gram), dtype=gram.dtype)
    factor: Tensor = torch.linalg.cholesky(gram + damping * mean * identity if mean else identity)
    return factor
