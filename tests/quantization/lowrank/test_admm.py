"""ADMM against its formula restated naively, and against rounding the factors of a singular value decomposition."""

import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bitsweep.config.precision import Grid
from bitsweep.datasets.mnist import Mnist
from bitsweep.errors import CompressionError
from bitsweep.models.cifar_resnet import CifarResNet
from bitsweep.quantization import grids
from bitsweep.quantization.calibration.ranges import minmax_weight_range, mse_weight_range
from bitsweep.quantization.lowrank.admm import Solution, admm, as_weights, factors_of, round_factors
from bitsweep.quantization.lowrank.chains import tensor_of
from bitsweep.quantization.lowrank.factorization import (
    Factors,
    decompose,
    orthogonal_components,
    rank_of_ratio,
    reconstruct,
    relative_error,
)
from bitsweep.training.network import load_weights

pytestmark = pytest.mark.slow

solve = partial(admm, iterations=20, inner_iterations=5, eps=1e-4)


def grid(bits: int, *, per_channel: bool = True, symmetric: bool = True) -> Grid:
    return Grid(bits=bits, signed=True, symmetric=symmetric, per_channel=per_channel)


def problem(*shape: int, rank: int, seed: int = 0) -> tuple[Tensor, Factors]:
    target = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return target, decompose(
        target, orthogonal_components(target).largest(rank), iterations=20, correction_iterations=5
    )


def rounding_errors(target: Tensor, factors: Factors, wanted: Grid) -> list[float]:
    """Of rounding the factors to the nearest codes, on min-max and on MSE ranges."""
    choosers = (minmax_weight_range, mse_weight_range)
    return [relative_error(target, factors_of(round_factors(factors, wanted, choose))) for choose in choosers]


def naive(
    target: Tensor, factors: Factors, wanted: Grid, *, iterations: int, inner_iterations: int
) -> list[list[Tensor]]:
    """Factors of a matrix on a grid with a scale for each, after every sweep."""

    def rounded(x: Tensor, scale: float) -> Tensor:
        return (x / scale).round().clamp(wanted.lo, wanted.hi) * scale

    def scale_of(x: Tensor) -> float:
        return x.abs().max().item() / wanted.hi

    found = [rounded(factor, scale_of(factor)) for factor in factors]
    duals = [torch.zeros_like(factor) for factor in factors]
    history = []
    for _ in range(iterations):
        for mode, W in enumerate((target, target.T)):
            other, R = found[1 - mode], found[0].shape[1]
            K, G = W @ other, other.T @ other
            rho = G.trace() / R
            scale = None
            for _ in range(inner_iterations):
                free = (torch.linalg.inv(G + rho * torch.eye(R)) @ (K + rho * (found[mode] + duals[mode])).T).T
                scale = scale or scale_of(free - duals[mode])
                found[mode] = rounded(free - duals[mode], scale)
                duals[mode] = duals[mode] + found[mode] - free
        history.append(list(found))
    return history


def test_against_the_formula() -> None:
    target, factors = problem(9, 7, rank=3)
    target, factors = target.double(), tuple(factor.double() for factor in factors)
    wanted = grid(4, per_channel=False)
    history = naive(target, factors, wanted, iterations=6, inner_iterations=3)
    errors = [relative_error(target, tuple(found)) for found in history]
    solution = admm(target, factors, wanted, minmax_weight_range, iterations=6, inner_iterations=3, eps=1e-12)
    assert max(errors) < solution.errors[0]  # so that nothing was begun again
    assert solution.errors[1:] == pytest.approx(errors, rel=1e-4)
    best = history[errors.index(min(errors))]
    for found, expected in zip(factors_of(solution.codes, torch.float64), best, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(20, 12), (12, 10, 9)])
@pytest.mark.parametrize("wanted", [grid(2, symmetric=False), grid(3), grid(8), grid(3, per_channel=False)], ids=str)
@pytest.mark.parametrize("choose_range", [minmax_weight_range, mse_weight_range])
def test_never_worse_than_its_start(shape: tuple[int, ...], wanted: Grid, choose_range: object) -> None:
    target, factors = problem(*shape, rank=5)
    solution = solve(target, factors, wanted, choose_range)  # type: ignore[arg-type]
    start = relative_error(target, factors_of(round_factors(factors, wanted, choose_range)))  # type: ignore[arg-type]
    assert solution.errors[0] == start
    assert len(solution.errors) == 21
    assert relative_error(target, factors_of(solution.codes)) == min(solution.errors) <= start


def test_the_factor_that_becomes_a_depthwise_layer_can_have_fewer_bits() -> None:
    wanted = replace(grid(8), depthwise_bits=5)
    target, factors = problem(12, 10, 9, rank=4)
    found = admm(target, factors, wanted, minmax_weight_range, iterations=2, inner_iterations=3, eps=1e-3).codes
    assert [each.grid.bits for each in found] == [8, 8, 5]
    assert [int(each.codes.abs().max()) for each in found] == [127, 127, 15]


@pytest.mark.parametrize("per_channel", [True, False])
def test_scales_are_those_of_the_layers_that_factors_become(per_channel: bool) -> None:
    """A has its outputs first, B and C the components, and each a scale for these."""
    target, factors = problem(6, 5, 9, rank=4)
    wanted = grid(4, per_channel=per_channel)
    solution = solve(target, factors, wanted, mse_weight_range)
    assert [tuple(codes.codes.shape) for codes in solution.codes] == [(6, 4), (4, 5), (4, 9)]
    channels = [(6,), (4,), (4,)] if per_channel else [(), (), ()]
    assert [tuple(codes.scale.shape) for codes in solution.codes] == channels
    for codes in solution.codes:
        assert codes.codes.dtype == grids.storage_dtype(wanted)
        assert wanted.lo <= codes.codes.min() <= codes.codes.max() <= wanted.hi
    for mode, factor in enumerate(factors_of(solution.codes)):
        assert as_weights(factor, mode).shape == solution.codes[mode].codes.shape


@pytest.mark.parametrize(("shape", "rank"), [((100, 100), 33), ((32, 32, 9), 60)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_beats_rounding_where_bits_are_few(shape: tuple[int, ...], rank: int, per_channel: bool) -> None:
    target, factors = problem(*shape, rank=rank)
    for wanted in (grid(2, symmetric=False, per_channel=per_channel), grid(3, per_channel=per_channel)):
        solution = solve(target, factors, wanted, mse_weight_range)
        assert min(solution.errors) < 0.96 * min(rounding_errors(target, factors, wanted))
    wanted = grid(8, per_channel=per_channel)
    solution = solve(target, factors, wanted, mse_weight_range)
    assert min(solution.errors) == pytest.approx(relative_error(target, factors), rel=0.05)


def test_a_solution_that_runs_away_begins_again() -> None:
    """With min-max ranges and two bits U grows from sweep to sweep; nothing overflows, and the best is kept."""
    target, factors = problem(100, 100, rank=33)
    solution = solve(target, factors, grid(2), minmax_weight_range, iterations=60, inner_iterations=10)
    assert max(solution.errors) > solution.errors[0]
    assert max(solution.errors) < 1000
    assert min(solution.errors) < solution.errors[0]


@pytest.mark.parametrize("shape", [(6, 1), (1, 6), (6, 1, 9), (6, 5)])
@pytest.mark.parametrize("dead", [False, True])
def test_degenerate_tensors(shape: tuple[int, ...], dead: bool) -> None:
    target, factors = problem(*shape, rank=1)
    if dead:
        target[0] = 0
        factors = decompose(target, orthogonal_components(target).largest(1), iterations=5, correction_iterations=2)
    solution = solve(target, factors, grid(8), mse_weight_range)
    found = reconstruct(factors_of(solution.codes))
    assert torch.isfinite(found).all()
    assert min(solution.errors) <= relative_error(target, factors) * 1.05 + 0.01
    if dead:
        assert (found[0] == 0).all()


def test_zeros_stay_zeros() -> None:
    target = torch.zeros(6, 5, 9)
    factors = decompose(target, orthogonal_components(target).largest(2), iterations=5, correction_iterations=2)
    solution = solve(target, factors, grid(4), mse_weight_range)
    assert solution.errors[0] == 0
    assert (reconstruct(factors_of(solution.codes)) == 0).all()


def test_weights_that_are_not_finite() -> None:
    target, factors = problem(6, 5, rank=2)
    factors[0][0, 0] = float("nan")
    with pytest.raises(CompressionError, match="not finite"):
        solve(target, factors, grid(4), minmax_weight_range)


def test_permuting_outputs_permutes_their_codes() -> None:
    target, factors = problem(6, 5, 9, rank=3)
    order = torch.tensor([4, 0, 3, 1, 5, 2])

    def solved(rows: Tensor) -> Solution:
        return solve(target[rows], (factors[0][rows], *factors[1:]), grid(3), mse_weight_range, iterations=3)

    one, other = solved(torch.arange(6)), solved(order)
    assert torch.equal(other.codes[0].codes, one.codes[0].codes[order])
    assert torch.equal(other.codes[1].codes, one.codes[1].codes)


@pytest.mark.slow
def test_a_trained_perceptron_at_rank_33(sample_data: Path) -> None:
    """Relative errors at two bits with a scale for each factor: above 1 by rounding on min-max ranges, 0.6 by ADMM."""
    about = {"variant": "MNIST", "classes": tuple("0123456789"), "md5": ("",) * 4, "download": False}
    raw = Mnist(name="mnist", root=str(sample_data / "mnist"), **about).decode()
    pixels = torch.from_numpy(raw.train.images[:10_000, :, :, 0].reshape(-1, 784).copy()).float() / 127.5 - 1
    labels = torch.from_numpy(raw.train.labels[:10_000].copy())
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for batch in itertools.chain(*(torch.randperm(len(pixels)).split(64) for _ in range(5))):
        loss = nn.functional.cross_entropy(network(pixels[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5
    for layer in (network[0], network[2]):
        target = layer.weight.detach()
        factors = orthogonal_components(target).largest(33)
        wanted = grid(2, symmetric=False, per_channel=False)
        minmax, mse = rounding_errors(target, factors, wanted)
        found = min(solve(target, factors, wanted, mse_weight_range).errors)
        assert minmax > 0.95
        assert found < 0.65
        assert found < 0.9 * mse
        wanted = grid(8, per_channel=False)
        assert min(solve(target, factors, wanted, mse_weight_range).errors) == pytest.approx(
            min(rounding_errors(target, factors, wanted)), rel=0.01
        )


@pytest.mark.slow
def test_layers_of_a_trained_network(sample_data: Path) -> None:
    network = CifarResNet(name="resnet20", depth=20, image_size=32).build(10)
    load_weights(network, sample_data / "weights" / "resnet20_cifar10.pt")
    weights = [module.weight.detach() for module in network.modules() if isinstance(module, nn.Conv2d)]
    for weight in weights[1::3]:
        target = tensor_of(weight)
        start = orthogonal_components(target).largest(rank_of_ratio(target.shape, 0.5))
        factors = decompose(target, start, iterations=20, correction_iterations=10)
        for wanted in (grid(2, symmetric=False), grid(3)):
            best = min(solve(target, factors, wanted, mse_weight_range).errors)
            assert best < 0.9 * min(rounding_errors(target, factors, wanted))
        nearest = min(rounding_errors(target, factors, grid(8)))
        assert 0.9 * nearest < min(solve(target, factors, grid(8), mse_weight_range).errors) <= nearest
