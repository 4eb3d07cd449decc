import functools

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bitsweep.config.precision import Grid
from bitsweep.quantization.calibration import histograms, ranges
from bitsweep.quantization.grids import choose_qparams, fake_quantize
from tests.quantization.calibration.test_histograms import long_tailed, with_one_louder

AFFINE = Grid(bits=8, signed=False, symmetric=False)
SYMMETRIC = Grid(bits=4, signed=True, symmetric=True)
values = arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(-100, 100, width=16))


def test_percentiles_against_numpy() -> None:
    x = long_tailed()
    lo, hi = ranges.percentile_range(histograms.histogram(x), AFFINE, percentile=99.0)
    width = (x.max() - x.min()).item() / 1000
    assert lo.item() == pytest.approx(np.percentile(x, 1), abs=width)
    assert hi.item() == pytest.approx(np.percentile(x, 99), abs=width)
    ends = ranges.percentile_range(histograms.histogram(x), AFFINE, percentile=100)
    assert [end.item() for end in ends] == pytest.approx([x.min().item(), x.max().item()], rel=1e-3)


def test_percentiles_count_exact_zeros() -> None:
    x = torch.cat([torch.zeros(900), torch.linspace(1, 2, 100)])
    _, hi = ranges.percentile_range(histograms.histogram(x), AFFINE, percentile=95)
    assert hi.item() == pytest.approx(np.percentile(x, 95), abs=0.02)


@pytest.mark.parametrize("grid", [AFFINE, SYMMETRIC], ids=str)
def test_the_expected_error_is_the_error(grid: Grid) -> None:
    x = long_tailed()
    lo, hi = torch.tensor([-4.0, -9.0]).double(), torch.tensor([5.0, 9.0]).double()
    expected = ranges.expected_error(histograms.histogram(x), lo, hi, grid)
    for column in range(2):
        qparams = choose_qparams(lo[column], hi[column], grid)
        error = (fake_quantize(x, *qparams, grid) - x).square().mean().item()
        assert expected[column].item() == pytest.approx(error, rel=0.02)


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("lowest", [-9.0, -0.4, 0.0])
def test_the_mse_range_leaves_out_searches_that_find_nothing_new(bits: int, lowest: float) -> None:
    grid = Grid(bits=bits, signed=False, symmetric=False)
    seen = histograms.histogram(long_tailed().clamp(min=lowest))
    widest_lo, widest_hi = lo, hi = ranges.minmax_range(seen, grid)
    for _ in range(2):
        his, los = widest_hi * ranges.SHRINK, widest_lo * ranges.SHRINK
        hi = his[ranges.expected_error(seen, lo.expand_as(his), his, grid).argmin()]
        lo = los[ranges.expected_error(seen, los, hi.expand_as(los), grid).argmin()]
    assert ranges.mse_range(seen, grid) == (lo, hi)


@pytest.mark.parametrize("grid", [Grid(bits=4, signed=False, symmetric=False), SYMMETRIC], ids=str)
def test_the_mse_range_is_as_good_as_a_brute_force_search(grid: Grid) -> None:
    x = long_tailed(4000)

    def error(lo: float, hi: float) -> float:
        qparams = choose_qparams(torch.tensor(lo), torch.tensor(hi), grid)
        return (fake_quantize(x, *qparams, grid) - x).square().mean().item()

    lo, hi = (end.item() for end in ranges.mse_range(histograms.histogram(x), grid))
    ends = np.linspace(0.1, 1, 30)
    if grid.symmetric:
        best = min(error(-bound, bound) for bound in ends * x.abs().max().item())
    else:
        best = min(error(x.min().item() * a, x.max().item() * b) for a in ends for b in ends)
    assert error(lo, hi) <= 1.02 * best
    assert error(lo, hi) < 0.7 * error(x.min().item(), x.max().item())


def test_one_loud_image_does_not_cost_the_others_their_steps() -> None:
    images = with_one_louder(50)
    louder = images[7].abs().max().item()
    _, blind = ranges.mse_range(histograms.histogram(images), AFFINE)
    _, hi = ranges.mse_range(histograms.histogram(images, of_images=True), AFFINE)
    assert hi < 0.8 * blind
    assert blind > 0.5 * louder


@pytest.mark.parametrize("per_channel", [True, False])
def test_rules_for_histograms_choose_weight_ranges(per_channel: bool) -> None:
    grid = Grid(bits=4, signed=True, symmetric=True, per_channel=per_channel)
    weight = long_tailed(6 * 50).reshape(6, 2, 5, 5)
    rule = functools.partial(ranges.sigma_range, sigmas=2)
    lo, hi = ranges.histogram_weight_range(weight, grid, choose_range=rule)
    assert lo.shape == hi.shape == ((6,) if per_channel else ())
    first = weight[:1] if per_channel else weight
    deviation = first.std(correction=0).item()
    assert hi.flatten()[0].item() == pytest.approx(
        min(first.max().item(), first.mean().item() + 2 * deviation), abs=0.02
    )


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


def test_moving_averages_go_through_the_batches_in_order() -> None:
    batches = [torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, 1.0]), torch.tensor([0.5, 4.0])]
    seen = functools.reduce(histograms.merge, map(histograms.histogram, batches))
    lo, hi = ranges.moving_average_range(seen, AFFINE, momentum=0.9)
    assert lo.item() == pytest.approx(0.9 * (0.9 * -1 + 0.1 * -3) + 0.1 * 0.5)
    assert hi.item() == pytest.approx(0.9 * (0.9 * 2 + 0.1 * 1) + 0.1 * 4)


def test_sigma_ranges_stay_within_the_values() -> None:
    x = long_tailed()
    lo, hi = ranges.sigma_range(histograms.histogram(x), AFFINE, sigmas=3)
    mean, deviation = x.mean().item(), x.std().item()
    assert (lo.item(), hi.item()) == pytest.approx((mean - 3 * deviation, mean + 3 * deviation), abs=0.02)
    assert ranges.sigma_range(histograms.histogram(x), AFFINE, sigmas=1e3)[1] == pytest.approx(x.max().item())


def test_deviations_around_zero() -> None:
    """127 / (k std) and min(127 / (4 std), 127 / max|a|), whatever the mean."""
    for x in (long_tailed(), torch.linspace(-1, 3, 1000)):
        seen, deviation = histograms.histogram(x), x.double().std(correction=0).item()
        lo, hi = ranges.std_range(seen, SYMMETRIC, sigmas=3.0)
        assert hi.item() == pytest.approx(3 * deviation, rel=1e-4)
        assert lo == -hi
        lo, hi = ranges.peak_or_std_range(seen, SYMMETRIC)
        assert hi.item() == pytest.approx(max(4 * deviation, x.abs().max().item()), rel=1e-4)
        assert lo == -hi


@pytest.mark.parametrize("value", [0.0, 1e-3, 5.0])
def test_values_without_deviation_are_not_clipped(value: float) -> None:
    _, hi = ranges.std_range(histograms.histogram(torch.full((9,), -value)), SYMMETRIC, sigmas=3.0)
    assert hi.item() == pytest.approx(value)


@pytest.mark.parametrize(
    ("distribution", "published"),
    # Banner et al., appendix: optimal clipping for 2 to 8 bits, in units of b and sigma.
    [("laplace", [2.83, 3.89, 5.03, 6.20, 7.41, 8.64, 9.89]), ("gauss", [1.71, 2.15, 2.55, 2.93, 3.28, 3.61, 3.92])],
)
def test_aciq_against_the_published_table(distribution: str, published: list[float]) -> None:
    assert [ranges.aciq_clip(bits, distribution) for bits in range(2, 9)] == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize("distribution", ["laplace", "gauss"])
@pytest.mark.parametrize("rectified", [False, True])
def test_aciq_is_near_the_least_error_for_its_distribution(distribution: str, rectified: bool) -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(getattr(rng, {"laplace": "laplace", "gauss": "normal"}[distribution])(size=100_000)).float()
    grid = Grid(bits=4, signed=False, symmetric=False)
    seen = histograms.histogram(x.clamp(min=0) if rectified else x)
    lo, hi = ranges.aciq_range(seen, grid, distribution=distribution)
    best = ranges.mse_range(seen, grid)
    errors = ranges.expected_error(seen, torch.stack([lo, best[0]]), torch.stack([hi, best[1]]), grid)
    assert errors[0] < 1.15 * errors[1]


def naive_divergence(x: np.ndarray, edges: np.ndarray, lo: float, hi: float, levels: int) -> float:
    """Reference P against quantized Q, value by value."""
    counts, _ = np.histogram(x[x != 0], edges)
    inside = [i for i in range(len(counts)) if edges[i + 1] > lo and edges[i] < hi]
    p = counts[inside].astype(float)
    p[0] += counts[: inside[0]].sum()
    p[-1] += counts[inside[-1] + 1 :].sum()
    step = (hi - lo) / (levels - 1)
    zero = round(-lo / step)
    code = [min(max(round((edges[i] + edges[i + 1]) / 2 / step) + zero, 0), levels - 1) for i in inside]
    q = np.zeros(len(inside))
    for level in set(code):
        bins = [j for j in range(len(inside)) if code[j] == level and counts[inside[j]] > 0]
        for j in bins:
            q[j] = sum(counts[inside[i]] for i in bins) / len(bins)
    p, q = p / p.sum(), q / q.sum()
    return sum(a * np.log(a / max(b, 1e-12)) for a, b in zip(p, q, strict=True) if a > 0)


def test_entropy_against_the_definition() -> None:
    x = torch.cat([long_tailed(5000), torch.tensor([-40.0, 50.0])])
    grid = Grid(bits=4, signed=False, symmetric=False)
    seen = histograms.histogram(x)
    lo, hi = (end.item() for end in ranges.entropy_range(seen, grid))
    edges = seen.edges.numpy()
    divergences = [naive_divergence(x.numpy(), edges, seen.lo * f, seen.hi * f, 16) for f in ranges.SHRINK.tolist()]
    factor = ranges.SHRINK[int(np.argmin(divergences))].item()
    assert (lo, hi) == pytest.approx((seen.lo * factor, seen.hi * factor))
    assert factor < 0.9


def test_chunks_of_wide_layers_change_nothing() -> None:
    grid = Grid(bits=4, signed=True, symmetric=True, per_channel=True)
    weight = torch.randn(8, 2**16, generator=torch.Generator().manual_seed(0))
    whole = ranges.mse_weight_range(weight, grid)
    rows = [ranges.mse_weight_range(row[None], grid) for row in weight]
    assert torch.equal(whole[1], torch.cat([hi for _, hi in rows]))
