"""Images on which activations are watched: taken from the training images, never from validation or test."""

from collections.abc import Iterator

import numpy as np
import torch

from bitsweep.artifacts import Array, Splits


def choose_images(splits: Splits, count: int, *, seed: int) -> Array:
    """Different training images at random, uint8 [N, H, W, C] with N = ``count``, or all if there are fewer."""
    chosen = np.random.default_rng(seed).permutation(len(splits.train))[:count]
    return np.asarray(splits.train.images[np.sort(chosen)])


def preprocessed(images: Array, splits: Splits, *, image_size: int, batch: int) -> Iterator[torch.Tensor]:
    """Batches of images as the network reads them, float32 [N, 3, H, W]."""
    from bitsweep.splits import preprocess

    for start in range(0, len(images), batch):
        yield preprocess(images[start : start + batch], image_size=image_size, mean_C=splits.mean_C, std_C=splits.std_C)
