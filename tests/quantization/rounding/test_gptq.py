"""GPTQ against Optimal Brain Quantization restated naively, and against what it promises."""

import pytest
import torch

from bitsweep.config.precision import Grid
from bitsweep.quantization.rounding.gptq import gptq_codes

GRID = Grid(bits=3, signed=True, symmetric=True, per_channel=True)


def problem(groups: int = 1, inputs: int = 11, samples: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(groups, 5, inputs, generator=generator)
    mixing = torch.randn(groups, inputs, inputs, generator=generator)
    x = mixing @ torch.randn(groups, inputs, samples, generator=generator)
    scale = weight.abs().amax(2, keepdim=True) / GRID.hi
    return weight, x, scale


def naive(weight_I: torch.Tensor, hessian: torch.Tensor, scale: float, order: list[int]) -> torch.Tensor:
    """One neuron: after each input, solve anew for the best float values of all that are left."""
    w = weight_I.double().clone()
    codes = torch.zeros_like(w)
    left = list(order)
    for i in order:
        codes[i] = (w[i] / scale).round().clamp(GRID.lo, GRID.hi)
        rows = torch.linalg.inv(hessian[left][:, left])
        at = left.index(i)
        w[left] -= (w[i] - codes[i] * scale) / rows[at, at] * rows[:, at]
        left.remove(i)
    return codes


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("block", [3, 128])
def test_against_the_formula(act_order: bool, block: int) -> None:
    weight, x, scale = problem(groups=2)
    hessian = x.double() @ x.double().mT
    codes = gptq_codes(
        weight, hessian, scale, torch.zeros(1, 1, 1), GRID, damping=0.01, act_order=act_order, block=block
    )
    for group in range(2):
        diagonal = hessian[group].diagonal()
        damped = hessian[group] + 0.01 * diagonal.mean() * torch.eye(11)
        order = diagonal.argsort(descending=True).tolist() if act_order else list(range(11))
        for neuron in range(5):
            expected = naive(weight[group, neuron], damped, scale[group, neuron].item(), order)
            assert torch.equal(codes[group, neuron], expected)


def test_outputs_are_closer_than_after_nearest_rounding() -> None:
    weight, x, scale = problem(inputs=60, samples=400)
    hessian = x.double() @ x.double().mT
    codes = gptq_codes(weight, hessian, scale, torch.zeros(1, 1, 1), GRID)
    nearest = (weight / scale).round().clamp(GRID.lo, GRID.hi)
    errors = [((weight - each * scale).double() @ x.double()).square().sum() for each in (codes, nearest)]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("dead", ["input", "all"])
def test_inputs_that_are_always_zero(dead: str) -> None:
    weight, x, scale = problem()
    x[:, slice(None) if dead == "all" else 3] = 0
    codes = gptq_codes(weight, x @ x.mT, scale, torch.zeros(1, 1, 1), GRID)
    nearest = (weight / scale).round().clamp(GRID.lo, GRID.hi)
    assert torch.isfinite(codes).all()
    assert torch.equal(codes[:, :, 3], nearest[:, :, 3].double())


def test_one_input() -> None:
    codes = gptq_codes(
        torch.tensor([[[0.5]], [[-2.0]]]), torch.ones(2, 1, 1), torch.ones(2, 1, 1), torch.zeros(1, 1, 1), GRID
    )
    assert codes.tolist() == [[[0.0]], [[-2.0]]]


def test_an_affine_grid_uses_its_zero_point() -> None:
    grid = Grid(bits=2, signed=True, symmetric=False, per_channel=True)
    codes = gptq_codes(
        torch.tensor([[[0.0, 1.0, 3.0]]]), torch.eye(3)[None], torch.ones(1, 1, 1), torch.full((1, 1, 1), -2), grid
    )
    assert codes.tolist() == [[[-2.0, -1.0, 1.0]]]


def test_permuting_neurons_permutes_their_codes() -> None:
    weight, x, scale = problem()
    hessian, order = x @ x.mT, torch.tensor([4, 0, 3, 1, 2])
    codes = gptq_codes(weight, hessian, scale, torch.zeros(1, 1, 1), GRID)
    assert torch.equal(
        gptq_codes(weight[:, order], hessian, scale[:, order], torch.zeros(1, 1, 1), GRID), codes[:, order]
    )
