import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bitsweep.axes import Grid
from bitsweep.errors import CompressionError
from bitsweep.quantization import ranges
from bitsweep.quantization.grids import choose_qparams, fake_quantize

AFFINE = Grid(bits=8, signed=False, symmetric=False)
SYMMETRIC = Grid(bits=4, signed=True, symmetric=True)
values = arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(-100, 100, width=16))


def long_tailed(n: int = 20_000) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).laplace(size=n).astype(np.float32))


@given(values)
def test_a_histogram_counts_everything(x: np.ndarray) -> None:
    seen = ranges.histogram(torch.from_numpy(x))
    assert (seen.lo, seen.hi) == (x.min(), x.max())
    assert seen.zeros == (x == 0).sum()
    assert seen.counts.sum() + seen.zeros == x.size
    assert len(seen.counts) <= ranges.BINS
    expected, _ = np.histogram(x[x != 0].astype(np.float64), seen.edges.numpy())
    assert np.array_equal(seen.counts.numpy(), expected)


@given(values, values)
def test_merging_is_counting_together(one: np.ndarray, other: np.ndarray) -> None:
    parts = [ranges.histogram(torch.from_numpy(x)) for x in (one, other)]
    merged, backwards = ranges.merge(*parts), ranges.merge(*reversed(parts))
    both = np.concatenate([one, other])
    assert (merged.lo, merged.hi, merged.zeros) == (both.min(), both.max(), (both == 0).sum())
    expected, _ = np.histogram(both[both != 0].astype(np.float64), merged.edges.numpy())
    assert np.array_equal(merged.counts.numpy(), expected)
    assert torch.equal(merged.counts, backwards.counts)


def test_percentiles_against_numpy() -> None:
    x = long_tailed()
    lo, hi = ranges.percentile_range(ranges.histogram(x), AFFINE, percentile=99.0)
    width = (x.max() - x.min()).item() / 1000
    assert lo.item() == pytest.approx(np.percentile(x, 1), abs=width)
    assert hi.item() == pytest.approx(np.percentile(x, 99), abs=width)
    ends = ranges.percentile_range(ranges.histogram(x), AFFINE, percentile=100)
    assert [end.item() for end in ends] == pytest.approx([x.min().item(), x.max().item()], rel=1e-3)


def test_percentiles_count_exact_zeros() -> None:
    x = torch.cat([torch.zeros(900), torch.linspace(1, 2, 100)])
    _, hi = ranges.percentile_range(ranges.histogram(x), AFFINE, percentile=95)
    assert hi.item() == pytest.approx(np.percentile(x, 95), abs=0.02)


@pytest.mark.parametrize("grid", [AFFINE, SYMMETRIC], ids=str)
def test_the_expected_error_is_the_error(grid: Grid) -> None:
    x = long_tailed()
    lo, hi = torch.tensor([-4.0, -9.0]).double(), torch.tensor([5.0, 9.0]).double()
    expected = ranges.expected_error(ranges.histogram(x), lo, hi, grid)
    for column in range(2):
        qparams = choose_qparams(lo[column], hi[column], grid)
        error = (fake_quantize(x, *qparams, grid) - x).square().mean().item()
        assert expected[column].item() == pytest.approx(error, rel=0.02)


@pytest.mark.parametrize("grid", [Grid(bits=4, signed=False, symmetric=False), SYMMETRIC], ids=str)
def test_the_mse_range_is_as_good_as_a_brute_force_search(grid: Grid) -> None:
    x = long_tailed(4000)

    def error(lo: float, hi: float) -> float:
        qparams = choose_qparams(torch.tensor(lo), torch.tensor(hi), grid)
        return (fake_quantize(x, *qparams, grid) - x).square().mean().item()

    lo, hi = (end.item() for end in ranges.mse_range(ranges.histogram(x), grid))
    ends = np.linspace(0.1, 1, 30)
    if grid.symmetric:
        best = min(error(-bound, bound) for bound in ends * x.abs().max().item())
    else:
        best = min(error(x.min().item() * a, x.max().item() * b) for a in ends for b in ends)
    assert error(lo, hi) <= 1.02 * best
    assert error(lo, hi) < 0.7 * error(x.min().item(), x.max().item())


@pytest.mark.parametrize("per_channel", [True, False])
def test_weight_ranges(per_channel: bool) -> None:
    grid = Grid(bits=3, signed=True, symmetric=True, per_channel=per_channel)
    weight = long_tailed(6 * 50).reshape(6, 2, 5, 5) * torch.logspace(-2, 2, 6)[:, None, None, None]
    errors = []
    for choose in (ranges.minmax_weight_range, ranges.mse_weight_range):
        lo, hi = choose(weight, grid)
        assert lo.shape == hi.shape == ((6,) if per_channel else ())
        approximation = fake_quantize(weight, *choose_qparams(lo, hi, grid), grid)
        errors.append((approximation - weight).square().flatten(1).sum(1))
    assert errors[1].sum() < errors[0].sum()
    if per_channel:
        assert (errors[1] <= errors[0] * (1 + 1e-6)).all()
        assert torch.equal(ranges.minmax_weight_range(weight, grid)[1], weight.flatten(1).amax(1))


def test_chunks_of_wide_layers_change_nothing() -> None:
    grid = Grid(bits=4, signed=True, symmetric=True, per_channel=True)
    weight = torch.randn(8, 2**16, generator=torch.Generator().manual_seed(0))
    whole = ranges.mse_weight_range(weight, grid)
    rows = [ranges.mse_weight_range(row[None], grid) for row in weight]
    assert torch.equal(whole[1], torch.cat([hi for _, hi in rows]))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(CompressionError, match="not finite on its calibration images"):
        ranges.histogram(torch.tensor([1.0, value]))
