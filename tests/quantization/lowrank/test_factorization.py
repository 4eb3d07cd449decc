"""Float factors against their formulas restated naively, and against what they promise."""

import itertools

import pytest
import torch
from torch import Tensor

from bitsweep.quantization.lowrank import factorization
from bitsweep.quantization.lowrank.factorization import Factors, reconstruct, relative_error

SHAPES = [(7, 5), (6, 5, 4), (3, 1, 9), (1, 8)]


def tensor(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def factors(shape: tuple[int, ...], rank: int, seed: int = 1) -> Factors:
    return tuple(tensor((size, rank), seed + mode) for mode, size in enumerate(shape))


def lengths(found: Factors) -> Tensor:
    """||a_r|| ||b_r|| ||c_r|| of each component."""
    return torch.stack([factor.norm(dim=0) for factor in found]).prod(0)


@pytest.mark.parametrize("shape", SHAPES)
def test_reconstruction_is_a_sum_over_components(shape: tuple[int, ...]) -> None:
    parts = factors(shape, 3)
    found = reconstruct(parts)
    for index in itertools.product(*map(range, shape)):
        terms = [torch.stack([part[i, r] for part, i in zip(parts, index, strict=True)]).prod() for r in range(3)]
        assert found[index] == pytest.approx(sum(terms).item())


@pytest.mark.parametrize("shape", SHAPES)
def test_normal_equations_are_those_of_the_unfolded_tensor(shape: tuple[int, ...]) -> None:
    target, parts = tensor(shape), factors(shape, 3)
    for mode in range(len(shape)):
        others = factorization.khatri_rao([part for each, part in enumerate(parts) if each != mode])
        K, gram = factorization.normal_equations(target, parts, mode)
        torch.testing.assert_close(K, target.movedim(mode, 0).flatten(1) @ others)
        torch.testing.assert_close(gram, others.T @ others)


@pytest.mark.parametrize("shape", SHAPES)
def test_components_are_orthonormal_and_complete(shape: tuple[int, ...]) -> None:
    target = tensor(shape)
    found = factorization.orthogonal_components(target)
    vectors = factorization.khatri_rao(found.directions)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(len(found.sizes), dtype=torch.float64))
    assert found.sizes.square().sum().item() == pytest.approx(target.square().sum().item())
    assert (found.sizes.diff() <= 0).all()
    for rank in (1, len(found.sizes) // 2, len(found.sizes)):
        left_out = found.sizes[rank:].norm() / target.norm()
        assert relative_error(target, found.largest(rank)) == pytest.approx(left_out.item(), abs=1e-12)


@pytest.mark.parametrize("shape", [(32, 16), (16, 16, 9), (1, 8), (2, 1)])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_a_ratio_bounds_the_weights(shape: tuple[int, ...], ratio: float) -> None:
    rank = factorization.rank_of_ratio(torch.Size(shape), ratio)
    weights = torch.Size(shape).numel()
    assert rank == 1 or rank * sum(shape) <= ratio * weights
    assert (rank + 1) * sum(shape) > ratio * weights


def test_a_share_of_the_energy() -> None:
    sizes = torch.tensor([3.0, 2.0, 1.0, 0.0])
    ranks = {energy: factorization.rank_of_energy(sizes, energy) for energy in (0.5, 0.64, 0.65, 0.9, 0.93, 0.999)}
    assert ranks == {0.5: 1, 0.64: 1, 0.65: 2, 0.9: 2, 0.93: 3, 0.999: 3}
    assert factorization.rank_of_energy(torch.zeros(4), 0.9) == 1


def test_a_sweep_of_least_squares_solves_for_each_factor() -> None:
    target, start = tensor((6, 5, 4)), factors((6, 5, 4), 3)
    expected = list(start)
    for mode in range(3):
        others = factorization.khatri_rao([each for other, each in enumerate(expected) if other != mode])
        expected[mode] = torch.linalg.lstsq(others, target.movedim(mode, 0).flatten(1).T).solution.T
    found = factorization.least_squares(target, start, iterations=1)
    torch.testing.assert_close(reconstruct(found), reconstruct(tuple(expected)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_least_squares_never_moves_away(seed: int) -> None:
    target = tensor((8, 7, 9), seed)
    found = factorization.orthogonal_components(target).largest(10)
    errors = [relative_error(target, found)]
    for _ in range(10):
        found = factorization.least_squares(target, found, iterations=1)
        errors.append(relative_error(target, found))
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


@pytest.mark.parametrize("seed", range(3))
def test_the_correction_makes_components_smaller_at_the_same_error(seed: int) -> None:
    target = tensor((8, 7, 9), seed)
    start = factorization.orthogonal_components(target).largest(20)
    fitted = factorization.least_squares(target, start, iterations=100)
    before, sizes = relative_error(target, fitted), [lengths(fitted).square().sum().item()]
    found = fitted
    for _ in range(4):
        found = factorization.smallest_components(target, found, iterations=1)
        assert relative_error(target, found) <= before * (1 + 1e-6)
        sizes.append(lengths(found).square().sum().item())
    assert all(after <= earlier * (1 + 1e-6) for earlier, after in itertools.pairwise(sizes))
    assert sizes[-1] < 0.95 * sizes[0]


def test_the_correction_finds_the_smallest_norm_within_the_bound() -> None:
    """For one factor: no other point of the sphere of that error is closer to 0."""
    target, start = tensor((6, 5, 4)), factors((6, 5, 4), 8)
    fitted = factorization.least_squares(target, start, iterations=3)
    (free, *others), bound = fitted, (target - reconstruct(fitted)).norm()
    unit = [other / other.norm(dim=0) for other in others]
    norms = []
    for shift in (1e-4, 1e-3, 1e-2, 1e-1):
        K, gram = factorization.normal_equations(target, (free, *unit), 0)
        ridge = K @ torch.linalg.inv(gram + shift * torch.eye(8))
        if (target - reconstruct((ridge, *unit))).norm() <= bound:
            norms.append(ridge.norm())
    corrected = factorization.smallest_components(target, fitted, iterations=1)
    assert norms
    assert lengths(corrected).norm() <= min(norms) * (1 + 1e-6)


@pytest.mark.parametrize("shape", [(6, 4), (6, 5, 4)])
def test_a_tensor_of_low_rank_is_found_again(shape: tuple[int, ...]) -> None:
    target = reconstruct(factors(shape, 2))
    start = factorization.orthogonal_components(target).largest(3)
    found = factorization.decompose(target, start, iterations=300, correction_iterations=2)
    assert relative_error(target, found) < 1e-2
    assert found[0].dtype == target.dtype


@pytest.mark.parametrize("shape", [(6, 4), (6, 5, 4)])
def test_zeros_and_dead_channels(shape: tuple[int, ...]) -> None:
    target = tensor(shape)
    target[2] = 0
    for each in (torch.zeros(shape), target):
        start = factorization.orthogonal_components(each).largest(2)
        found = factorization.decompose(each, start, iterations=5, correction_iterations=2)
        assert all(torch.isfinite(factor).all() for factor in found)
        torch.testing.assert_close(reconstruct(found)[2], torch.zeros_like(each[2]), rtol=0, atol=1e-6)
    assert relative_error(torch.zeros(shape), found) == float("inf")


@pytest.mark.parametrize("shape", [(6, 4), (6, 5, 4)])
def test_permuting_outputs_permutes_what_is_found(shape: tuple[int, ...]) -> None:
    target, order = tensor(shape), torch.tensor([4, 0, 3, 1, 5, 2])

    def found(each: Tensor) -> Tensor:
        start = factorization.orthogonal_components(each).largest(3)
        return reconstruct(factorization.decompose(each, start, iterations=5, correction_iterations=2))

    torch.testing.assert_close(found(target[order]), found(target)[order], rtol=1e-5, atol=1e-6)
