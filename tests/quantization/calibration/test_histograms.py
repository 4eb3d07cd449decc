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
