"""From stored pixels to what a network sees, as tensors on any device.

Shape letters: N images, H height, W width, C channels (1 or 3), S input size of the network.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from bitsweep.data.pixels import resize_weights
from bitsweep.results import Array, Pixels, Splits

if TYPE_CHECKING:
    import torch


def preprocess(
    images_NHWC: "Array | torch.Tensor", *, image_size: int, mean_C: tuple[float, ...], std_C: tuple[float, ...]
) -> "torch.Tensor":
    """`bitsweep.data.pixels.network_input` with tensors, bit for bit.

    Args:
        images_NHWC: uint8 [N, H, W, C] with C = 1 or 3; a tensor keeps its device.

    Returns:
        float32 [N, 3, S, S], contiguous.
    """
    import torch

    images = images_NHWC if isinstance(images_NHWC, torch.Tensor) else torch.from_numpy(np.array(images_NHWC))
    assert images.dtype == torch.uint8 and images.ndim == 4 and images.shape[3] == len(mean_C) == len(std_C)
    count, height, width, channels = images.shape
    planes_NCHW = images.permute(0, 3, 1, 2)
    if (height, width) != (image_size, image_size):
        rows_SH, columns_SW = (
            torch.tensor(resize_weights(old, image_size), device=images.device) for old in (height, width)
        )
        strips = rows_SH @ images.reshape(count, height, width * channels).to(torch.float64)
        planes_NCHW = strips.reshape(count, image_size, width, channels).permute(0, 3, 1, 2) @ columns_SW.T
    scaled_NCHW = planes_NCHW.to(torch.float32, memory_format=torch.contiguous_format) / 255
    mean_C11, std_C11 = (torch.tensor(values, device=images.device).reshape(-1, 1, 1) for values in (mean_C, std_C))
    normalised_NCHW = (scaled_NCHW - mean_C11) / std_C11
    return normalised_NCHW.expand(-1, 3, -1, -1).contiguous()


def preprocessed(images: Pixels, splits: Splits, *, image_size: int, batch: int) -> "Iterator[torch.Tensor]":
    """Stored images as a network sees them, float32 [N, 3, S, S] with N up to ``batch``, made when asked for."""
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        yield preprocess(part, image_size=image_size, mean_C=splits.mean_C, std_C=splits.std_C)


def normalized(splits: Splits, pixels: Literal["dataset", "imagenet", "centred"]) -> Splits:
    """The same images, with the mean and deviation by which a model's pixels are normalised."""
    match pixels:
        case "imagenet":
            return normalized_for_imagenet(splits)
        case "centred":
            return centred(splits)
    return splits


def centred(splits: Splits) -> Splits:
    """The same images, whose pixels from 0 to 255 become (x - 127) / 128."""
    channels = len(splits.mean_C)
    return replace(splits, mean_C=(127 / 255,) * channels, std_C=(128 / 255,) * channels)


def normalized_for_imagenet(splits: Splits) -> Splits:
    """The same images, with mean and std of ImageNet's pixels; those of grey images are of their luminance."""
    if len(splits.mean_C) == 1:
        return replace(splits, mean_C=(0.449,), std_C=(0.226,))
    return replace(splits, mean_C=(0.485, 0.456, 0.406), std_C=(0.229, 0.224, 0.225))
