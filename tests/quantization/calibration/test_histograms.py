import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bitsweep.config.precision import Grid
from bitsweep.errors import CompressionError
from bitsweep.quantization.calibration import histograms

AFFINE = Grid(bits=8, signed=False, symmetric=False)
SYMMETRIC = Grid(bits=4, signed=True, symmetric=True)
values = arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(-100, 100, width=16))


def long_tailed(n: int = 20_000) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).laplace(size=n).astype(np.float32))


@given(values)
def test_a_histogram_counts_everything(x: np.ndarray) -> None:
    seen = histograms.histogram(torch.from_numpy(x))
    assert (seen.lo, seen.hi) == (x.min(), x.max())
    assert seen.zeros == (x == 0).sum()
    assert seen.counts.sum() + seen.zeros == x.size
    assert len(seen.counts) <= histograms.BINS
    expected, _ = np.histogram(x[x != 0].astype(np.float64), seen.edges.numpy())
    assert np.array_equal(seen.counts.numpy(), expected)


@given(values, values)
def test_merging_is_counting_together(one: np.ndarray, other: np.ndarray) -> None:
    parts = [histograms.histogram(torch.from_numpy(x)) for x in (one, other)]
    merged, backwards = histograms.merge(*parts), histograms.merge(*reversed(parts))
    both = np.concatenate([one, other])
    assert (merged.lo, merged.hi, merged.zeros) == (both.min(), both.max(), (both == 0).sum())
    expected, _ = np.histogram(both[both != 0].astype(np.float64), merged.edges.numpy())
    assert np.array_equal(merged.counts.numpy(), expected)
    assert torch.equal(merged.counts, backwards.counts)


def with_one_louder(by: float) -> torch.Tensor:
    """32 images [32, 100] of noise, of which one is so many times larger."""
    images = long_tailed(3200).reshape(32, 100).clone()
    images[7] *= by
    return images


def test_images_like_the_others_count_in_full() -> None:
    seen = histograms.histogram(with_one_louder(1.1), of_images=True)
    assert torch.equal(seen.weighed, seen.counts)


def test_an_image_of_far_more_power_counts_for_less() -> None:
    images = with_one_louder(50)
    images[7, :40] = 0
    power = images.double().square().sum(1)
    weights = (histograms.POWER * power.median() / power).clamp(max=1)
    assert (weights < 1).sum() == 1
    seen = histograms.merge(
        histograms.histogram(images, of_images=True), histograms.histogram(with_one_louder(1.1), of_images=True)
    )
    edges = seen.edges.numpy()
    expected = (
        sum(
            np.histogram(image[image != 0].double(), edges)[0] * weight.item()
            for image, weight in zip(images, weights, strict=True)
        )
        + np.histogram(with_one_louder(1.1).double(), edges)[0]
    )
    np.testing.assert_allclose(seen.weighed, expected, atol=1e-9)
    assert seen.counts.sum() + seen.zeros == 6400


SHAPES = [(2, 96, 32, 32), (2, 5, 7, 4000), (2, 3, 40_000), (3, 50_000), (2, 600, 14, 14)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_of_large_images_a_sample_stands_for_all(shape: tuple[int, ...], last: bool) -> None:
    images = long_tailed(int(np.prod(shape))).reshape(shape).clone()
    images *= 0.5 + torch.arange(shape[1]).reshape(-1, *[1] * (len(shape) - 2)) / shape[1]
    images[images.abs() < 0.1] = 0
    images[1].flatten()[77] = 30.0
    if last and len(shape) == 4:
        images = images.contiguous(memory_format=torch.channels_last)
    seen, exact = histograms.histogram(images, of_images=True), histograms.histogram(images)
    assert (seen.lo, seen.hi) == (exact.lo, exact.hi) and seen.hi == 30.0
    assert seen.total == pytest.approx(images.numel())
    assert seen.zeros == pytest.approx(exact.zeros, rel=0.1)
    assert histograms.moments(seen) == pytest.approx(histograms.moments(exact), rel=0.1, abs=0.03)


def test_a_sample_leaves_out_no_channel_row_or_column() -> None:
    for size in SHAPES[0][1:], (64, 64, 64), (96, 112, 112):
        for axes in ((0, 1, 2), (1, 2, 0)):
            index_CHW = torch.cartesian_prod(*map(torch.arange, size)).reshape(*size, 3).permute(3, *axes)
            seen = [histograms._sample(each[None])[0] for each in index_CHW]
            assert len(seen[0]) <= histograms.SAMPLE
            assert [sorted(set(each.tolist())) for each in seen] == [list(range(count)) for count in size]


def test_an_image_may_have_a_single_value() -> None:
    seen = histograms.histogram(torch.tensor([0.5, -2.0, 0.0]), of_images=True)
    assert (seen.total, seen.zeros, seen.lo, seen.hi) == (3, 1, -2.0, 0.5)


def test_values_beyond_bounds_count_as_the_bound() -> None:
    x = long_tailed(64).reshape(4, 16)
    bounded = histograms.histogram(x, of_images=True, bounds=(-1.0, 2.0))
    expected = histograms.histogram(x.clamp(-1.0, 2.0), of_images=True)
    assert bounded.ends == expected.ends and torch.equal(bounded.weighed, expected.weighed)


@given(values)
def test_moments(x: np.ndarray) -> None:
    mean, deviation = histograms.moments(histograms.histogram(torch.from_numpy(x)))
    resolution = float(2 * np.abs(x).max() / 500 + 1e-9)
    assert mean == pytest.approx(x.astype(np.float64).mean(), abs=resolution)
    assert deviation == pytest.approx(x.astype(np.float64).std(), abs=resolution)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(CompressionError, match="not finite on its calibration images"):
        histograms.histogram(torch.tensor([1.0, value]))
