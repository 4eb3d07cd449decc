"""From stored pixels to what a network sees, as tensors on any device.

Shape letters: N images, H height, W width, C channels.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from bitsweep.data.network_input import resize_weights
from bitsweep.errors import DataError
from bitsweep.results import Array, Pixels, Shape, Splits
from bitsweep.text import counted

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

if TYPE_CHECKING:
    import torch

    from bitsweep.config.model import Model


def preprocess(
    images_NHWC: "Array | torch.Tensor",
    *,
    input_shape: Shape,
    mean_C: tuple[float, ...],
    std_C: tuple[float, ...],
    bgr: bool = False,
    memory_format: "torch.memory_format | None" = None,
) -> "torch.Tensor":
    """`bitsweep.data.network_input.network_input` with tensors, bit for bit.

    Args:
        images_NHWC: uint8 or uint16 [N, H, W, C] with C = 1 or as many channels as the network takes; a tensor keeps
            its device. Those in float32 are scaled by nothing.
        memory_format: of what is returned; contiguous by default.

    Returns:
        float32 [N, C, H, W].
    """
    import torch

    images = images_NHWC if isinstance(images_NHWC, torch.Tensor) else torch.from_numpy(np.array(images_NHWC))
    assert images.dtype in (torch.uint8, torch.uint16, torch.float32) and images.ndim == 4
    white = 1 if images.is_floating_point() else torch.iinfo(images.dtype).max
    count, old_height, old_width, stored = images.shape
    channels, height, width = input_shape
    if (old_height, old_width) != (height, width):
        rows, columns = (
            torch.tensor(resize_weights(old, new, value_bytes=images.itemsize), device=images.device)
            for old, new in ((old_height, height), (old_width, width))
        )
        strips = rows @ images.reshape(count, old_height, old_width * stored).to(torch.float64)
        planes_NCHW = strips.reshape(count, height, old_width, stored).permute(0, 3, 1, 2) @ columns.T
        images = planes_NCHW.permute(0, 2, 3, 1)
    # In place, a row of pixels at a time: on a CPU this takes a third of the time of whole images with channels apart.
    scaled_NHWC = images.to(torch.float32, copy=True, memory_format=torch.contiguous_format).div_(white)
    if bgr:
        scaled_NHWC = scaled_NHWC.flip(3)
    if stored < channels:
        scaled_NHWC = scaled_NHWC.expand(-1, -1, -1, channels).contiguous()
    rows_MR = scaled_NHWC.view(count * height, width * channels)
    mean_R, std_R = (
        torch.tensor(values, dtype=torch.float32, device=images.device).expand(channels).repeat(width)
        for values in (mean_C, std_C)
    )
    rows_MR.sub_(mean_R).div_(std_R)
    planes_NCHW = scaled_NHWC.permute(0, 3, 1, 2)
    if memory_format not in (None, torch.contiguous_format):
        return planes_NCHW.contiguous(memory_format=memory_format)
    # One channel lies the same way in both layouts: the strides decide which one convolutions go on with.
    return planes_NCHW.contiguous().view(planes_NCHW.shape)


def preprocessed(
    images: Pixels,
    splits: Splits,
    *,
    input_shape: Shape,
    batch: int,
    memory_format: "torch.memory_format | None" = None,
) -> "Iterator[torch.Tensor]":
    """Stored images as a network sees them, float32 [N, C, H, W] with N up to ``batch``, made when asked for."""
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        yield preprocess(
            part, input_shape=input_shape, mean_C=splits.mean_C, std_C=splits.std_C, bgr=splits.bgr,
            memory_format=memory_format,
        )  # fmt: skip


def normalized(splits: Splits, model: "Model") -> Splits:
    """The same images, with the mean and deviation by which a model's pixels are normalised.

    Raises:
        DataError: the images have other channels than the model takes.
    """
    stored, taken = splits.test.images.shape[3], model.input_shape[0]
    if stored not in (1, taken):
        raise DataError(
            f"model.channels={taken}: the images have {counted(stored, 'channel')}; set model.channels={stored}, for a "
            "network that takes them"
        )
    bgr = model.channel_order == "bgr"
    match model.pixels:
        case "imagenet":
            return replace(normalized_for_imagenet(splits), bgr=bgr)
        case "centred":
            return replace(centred(splits), bgr=bgr)
        case "published":
            mean_C, std_C = model.published_moments()
            return replace(splits, mean_C=mean_C, std_C=std_C, bgr=bgr)
        case "given":
            black, white = model.pixel_range or (0, 1)
            mean_C = tuple((each - black) / (white - black) for each in model.mean or (0,))
            std_C = tuple(each / (white - black) for each in model.std or (1,))
            return replace(splits, mean_C=mean_C, std_C=std_C, bgr=bgr)
    return replace(splits, mean_C=splits.mean_C[::-1], std_C=splits.std_C[::-1], bgr=True) if bgr else splits


def centred(splits: Splits) -> Splits:
    """The same images, whose pixels from 0 to 255 become (x - 127) / 128."""
    return replace(splits, mean_C=(127 / 255,), std_C=(128 / 255,))


def normalized_for_imagenet(splits: Splits) -> Splits:
    """The same images, with mean and std of ImageNet's pixels; those of grey images are of their luminance."""
    if len(splits.mean_C) == 1:
        return replace(splits, mean_C=(0.449,), std_C=(0.226,))
    return replace(splits, mean_C=IMAGENET_MEAN, std_C=IMAGENET_STD)
