import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bitsweep.config.precision import Grid
from bitsweep.errors import CompressionError
from bitsweep.quantization import grids

GRIDS = [
    Grid(bits=bits, signed=signed, symmetric=symmetric)
    for bits in (2, 3, 4, 7, 8, 16)
    for signed, symmetric in ((True, True), (True, False), (False, False))
]
values = arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e4, 1e4, width=32))


def on_grid(x: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    return grids.choose_qparams(x.min(), x.max(), grid)


def naive(x: float, scale: float, zero_point: int, grid: Grid) -> int:
    """The formula, value by value; Python's round is half to even, too."""
    return min(max(round(float(np.float32(x) / np.float32(scale))) + zero_point, grid.lo), grid.hi)


@given(x=values)
def test_codes_against_the_formula(x: np.ndarray) -> None:
    tensor = torch.from_numpy(x)
    for grid in GRIDS:
        scale, zero_point = on_grid(tensor, grid)
        codes = grids.quantize(tensor, scale, zero_point, grid)
        assert codes.dtype == grids.storage_dtype(grid), grid
        expected = [naive(value, scale.item(), int(zero_point), grid) for value in x.tolist()]
        assert codes.long().tolist() == expected, grid


@given(x=values)
def test_an_error_is_at_most_half_a_step(x: np.ndarray) -> None:
    tensor = torch.from_numpy(x).double()
    for grid in GRIDS:
        scale, zero_point = on_grid(tensor, grid)
        error = (grids.fake_quantize(tensor.float(), scale, zero_point, grid).double() - tensor).abs().max()
        # The zero point is rounded, too, so that an end of an affine range may lie up to half a step outside.
        steps = 0.5 if grid.symmetric else 1.0
        assert error <= scale.double() * steps * (1 + 1e-5) + 1e-6 * tensor.abs().max(), grid


@given(x=values)
def test_quantizing_twice_changes_nothing(x: np.ndarray) -> None:
    tensor = torch.from_numpy(x)
    for grid in GRIDS:
        scale, zero_point = on_grid(tensor, grid)
        once = grids.fake_quantize(tensor, scale, zero_point, grid)
        assert torch.equal(grids.fake_quantize(once, scale, zero_point, grid), once), grid


@given(x=values, exponent=st.integers(-6, 6))
def test_codes_do_not_depend_on_the_unit(x: np.ndarray, exponent: int) -> None:
    tensor = torch.from_numpy(x)
    if tensor.abs().max() < 1e-6:
        return
    for grid in GRIDS:
        one, other = (grids.quantize(t, *on_grid(t, grid), grid) for t in (tensor, tensor * 2.0**exponent))
        assert torch.equal(one, other), grid


@given(st.permutations(range(5)))
def test_permuting_channels_permutes_the_codes(order: list[int]) -> None:
    grid = Grid(bits=4, signed=True, symmetric=True, per_channel=True)
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))

    def codes(w: torch.Tensor) -> torch.Tensor:
        return grids.quantize(w, *grids.choose_qparams(*torch.aminmax(w.flatten(1), dim=1), grid), grid)

    assert torch.equal(codes(weight[order]), codes(weight)[order])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_values_outside_are_clamped_and_never_wrap(grid: Grid) -> None:
    scale, zero_point = grids.choose_qparams(torch.tensor(-1.0), torch.tensor(1.0), grid)
    far = torch.tensor([-1e9, -300.0, 300.0, 1e9])
    assert grids.quantize(far, scale, zero_point, grid).long().tolist() == [grid.lo, grid.lo, grid.hi, grid.hi]
    assert grids.clipped_share(torch.tensor([-300.0, 0.0, 0.5, 300.0]), scale, zero_point, grid) == 0.5


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("ends", [(0.25, 3.0), (-3.0, -0.25), (0.0, 0.0), (-1.0, 2.0), (0.0, 1e-40)])
def test_zero_is_exact(grid: Grid, ends: tuple[float, float]) -> None:
    scale, zero_point = grids.choose_qparams(torch.tensor(ends[0]), torch.tensor(ends[1]), grid)
    assert scale > 0
    assert grid.lo <= int(zero_point) <= grid.hi
    assert grids.fake_quantize(torch.zeros(()), scale, zero_point, grid) == 0


@pytest.mark.parametrize(("lo", "hi"), [(-math.inf, 1.0), (0.0, math.nan), (math.inf, -math.inf)])
def test_a_range_that_is_not_finite_is_refused(lo: float, hi: float) -> None:
    with pytest.raises(CompressionError, match="not finite"):
        grids.choose_qparams(torch.tensor(lo), torch.tensor(hi), GRIDS[0])


def test_a_dead_channel_keeps_a_scale_that_a_bias_can_stand_on() -> None:
    grid = Grid(bits=8, signed=True, symmetric=True, per_channel=True)
    bound = torch.tensor([2.0, 0.0])
    scale, _ = grids.choose_qparams(-bound, bound, grid)
    assert scale[0] == pytest.approx(2 / 127)
    assert scale[1] / scale[0] == pytest.approx(grids.CHANNEL_SCALE_RATIO)


@pytest.mark.parametrize(
    ("grid", "bits"),
    [
        (Grid(bits=4, signed=True, symmetric=True, per_channel=True), math.ceil(60 * math.log2(15)) + 3 * 32),
        (Grid(bits=2, signed=True, symmetric=True), math.ceil(60 * math.log2(3)) + 32),
        (Grid(bits=5, signed=True, symmetric=True, levels=17), math.ceil(60 * math.log2(17)) + 32),
        (Grid(bits=7, signed=True, symmetric=True, per_channel=True), 60 * 8 + 3 * 32),
        (Grid(bits=16, signed=True, symmetric=True), 60 * 16 + 32),
        (Grid(bits=8, signed=False, symmetric=False), 60 * 8 + 32 + 8),
    ],
    ids=str,
)
def test_bits_as_stored(grid: Grid, bits: int) -> None:
    assert grids.stored_bits(torch.Size([3, 5, 2, 2]), grid) == bits


def test_sqnr_against_the_formula() -> None:
    reference, other = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])
    assert grids.sqnr_db(reference, other) == pytest.approx(10 * math.log10(25 / 0.25))
    assert grids.sqnr_db(reference, reference) == math.inf
    assert grids.sqnr_db(torch.zeros(2), other) == -math.inf
