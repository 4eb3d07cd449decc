"""Images drawn from splits: for calibration, validation and parity, each class with its share."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from bitsweep.data.preprocessing import preprocessed
from bitsweep.errors import DataError
from bitsweep.results import Array, Shape, Splits
from bitsweep.text import say

if TYPE_CHECKING:
    import torch


def stratified(labels: Array, count: int, seed: int) -> Array:
    """Indices of a number of images, each class with its share of them, in random order.

    Args:
        labels: int64 [N].
        count: at most N.
        seed: same seed, same indices.

    Returns:
        int64 [count]. Classes are rounded by largest remainder: each is off by less than one image.
    """
    classes, class_of_N, sizes_K = np.unique(labels, return_inverse=True, return_counts=True)
    exact_K = sizes_K * (count / len(labels))
    quota_K = np.floor(exact_K).astype(np.int64)
    # Rounding to 9 digits keeps equal remainders equal, so that ties fall to the first classes on every machine.
    most_wanting = np.argsort(-np.round(exact_K - quota_K, 9), kind="stable")
    quota_K[most_wanting[: count - int(quota_K.sum())]] += 1
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(class_of_N == k))[: quota_K[k]] for k in range(len(classes))]
    return rng.permutation(np.concatenate(chosen))


def stratified_share(labels: Array, share: float, seed: int) -> Array:
    """The same of a share of all images, in [0, 1]."""
    return stratified(labels, round(share * len(labels)), seed)


def held_out(count: int, share: float) -> int:
    """How many of so many images are held out from the others: at least one."""
    return max(1, round(share * count))


def tell_held_out(key: str, count: int, share: float) -> None:
    """Say that ranges are chosen on some of so many test images, since there are no others, and what to do about it.

    Args:
        key: of the setting that names the images, with its value.
    """
    say(
        f"{key}: {held_out(count, share)} of {count} test images {'is' if held_out(count, share) == 1 else 'are'} held "
        f"out to choose ranges on, by dataset.val_share={share:g}; to test all, name others with dataset.calibration",
    )


def calibration_images(splits: Splits, count: int, seed: int) -> Array:
    """Images to calibrate on, each class with its share, in random order: none of those that accuracy is measured on.

    Returns:
        uint8 [N, H, W, C] with N = ``count``, or all of `Splits.calibration` if there are fewer.
    """
    chosen = stratified(splits.calibration.labels, min(count, len(splits.calibration)), seed)
    return np.asarray(splits.calibration.images[chosen])


def validation_batches(
    splits: Splits, count: int, *, input_shape: Shape, seed: int, batch: int = 32
) -> "Iterator[tuple[torch.Tensor, torch.Tensor]]":
    """Validation images as the network sees them, float32 [N, C, H, W], with their labels, int64 [N].

    Each class has its share of ``count`` images, or of all if there are fewer.

    Raises:
        DataError: there are none.
    """
    import torch

    if not len(splits.val):
        raise DataError("there are no labelled images beside the test images, for want of training images")
    chosen = stratified(splits.val.labels, min(count, len(splits.val)), seed)
    images, labels = np.asarray(splits.val.images[chosen]), torch.from_numpy(np.asarray(splits.val.labels[chosen]))
    yield from zip(
        preprocessed(images, splits, input_shape=input_shape, batch=batch), torch.split(labels, batch), strict=True
    )


def sample_of_tests(splits: Splits, count: int) -> Array:
    """Indices of ``count`` test images, int64 in rising order, each class with its share; of all if it has fewer."""
    return np.sort(stratified(splits.test.labels, min(count, len(splits.test)), 0))


def sample_of_validation(splits: Splits, count: int) -> Array:
    """The same of validation images; none where methods are calibrated on these, for want of training images."""
    held_out = splits.val.labels if len(splits.train) else splits.val.labels[:0]
    return np.sort(stratified(held_out, min(count, len(held_out)), 0)) if len(held_out) else np.array([], np.int64)
