"""Rounding that gradients pass through, against its formulas."""

import copy

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import nn

from bitsweep.config.precision import Grid
from bitsweep.quantization import grids
from bitsweep.quantization.learned.fake_quantization import FakeQuantize, stored_as, straight_through


@example(values=[1.0, 3.0, 5.0, -1.0], step=2.0, middle=1)  # ties, which the zero point must not turn
@given(st.lists(st.floats(-4, 4, width=32), min_size=4, max_size=4), st.floats(0.125, 2, width=32), st.integers(0, 15))
def test_rounding_and_its_gradients(values: list[float], step: float, middle: int) -> None:
    grid = Grid(bits=4, signed=False, symmetric=False)
    x, scale = torch.tensor(values, requires_grad=True), torch.tensor(step, requires_grad=True)
    zero_point = torch.tensor(middle)
    exact = x.detach() / scale.detach() + zero_point
    assume(not ((exact == grid.lo) | (exact == grid.hi)).any())  # where the gradient jumps
    rounded = straight_through(x, scale, zero_point, grid)
    expected = grids.fake_quantize(x.detach(), scale.detach(), zero_point, grid)
    torch.testing.assert_close(rounded.detach(), expected, rtol=1e-5, atol=1e-6)
    rounded.sum().backward()
    inside = (exact > grid.lo) & (exact < grid.hi)
    ratio = x.detach() / step
    pull = torch.where(inside, ratio.round() - ratio, exact.clamp(grid.lo, grid.hi) - middle)
    assert x.grad is not None and scale.grad is not None
    assert torch.equal(x.grad, inside.float())
    assert float(scale.grad) == pytest.approx(float(pull.sum()), abs=2e-4)


def test_learned_scales_stay_positive_and_change_by_shares() -> None:
    """Of 8 bits they are smaller than what a few steps of Adam change a weight by."""
    grid, start = Grid(bits=8, signed=True, symmetric=True, per_channel=True), torch.tensor([1e-3, 1.0])
    made = FakeQuantize(grid, start, torch.zeros(2, dtype=torch.int64), learned=True)
    weight = 300 * start[:, None] + torch.zeros(2, 5)  # beyond the grid
    optimizer = torch.optim.Adam(made.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        (made(weight).square().sum(1) / start.square()).sum().backward()
        optimizer.step()
    shares = made.scale.detach() / start
    torch.testing.assert_close(shares[0], shares[1])
    assert 0.5 < float(shares[0]) < 0.8


def test_layers_compute_with_halves_and_learn_in_full() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))
    names, before = list(network.state_dict()), {name: x.clone() for name, x in network.named_parameters()}
    rounded = copy.deepcopy(network)
    for layer in (rounded[0], rounded[3]):
        for parameter in layer.parameters():
            parameter.data = parameter.data.bfloat16().float()
    images = torch.rand(4, 2, 1, 1)
    expected = rounded(images)
    expected.square().sum().backward()
    with stored_as(network, torch.bfloat16):
        logits = network(images)
        logits.square().sum().backward()
    torch.testing.assert_close(logits, expected)
    assert list(network.state_dict()) == names
    for (name, parameter), learned in zip(network.named_parameters(), rounded.parameters(), strict=True):
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0)
        torch.testing.assert_close(parameter.grad, learned.grad)
