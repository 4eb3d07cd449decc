"""From stored pixels to what a network takes.

NumPy is all that it needs: a bundle ships this file itself, and so does what measures on another machine.

Shape letters: N images, H height, W width, C channels.
"""

import functools
from typing import Any

import numpy as np

#: By the bytes of a stored value: weights of resizing are multiples of 2 to the power of minus this, so that double
#: precision sums them without error, along rows and then along columns.
_WEIGHT_BITS = {1: 20, 2: 18}


@functools.lru_cache(maxsize=64)
def resize_weights(old: int, new: int, *, value_bytes: int) -> np.ndarray[Any, Any]:
    """The matrix that resizes ``old`` pixels to ``new``, bilinearly with antialiasing, float64 [new, old].

    Pixel i of the result is centred at c = (i + 1/2) old / new; pixel j of the original, which is centred at j + 1/2,
    counts max(0, 1 - |j + 1/2 - c| / max(1, old / new)), and every row sums to 1. The weights are multiples of 2^-20
    for pixels of one byte and of 2^-18 for those of two, so that products are exact in double precision: every library
    gives the same sums.
    """
    ratio = old / new
    centres = ratio * (np.arange(new)[:, None] + 0.5)
    weights = np.maximum(0.0, 1 - np.abs(np.arange(old)[None, :] + 0.5 - centres) / max(1.0, ratio))
    one = 1 << _WEIGHT_BITS[value_bytes]
    codes = np.rint(weights / weights.sum(1, keepdims=True) * one)
    codes[np.arange(new), codes.argmax(1)] += one - codes.sum(1)
    exact: np.ndarray[Any, Any] = codes / one
    exact.setflags(write=False)
    return exact


def network_input(
    images_NHWC: np.ndarray[Any, Any],
    *,
    input_shape: tuple[int, int, int],
    mean_C: tuple[float, ...],
    std_C: tuple[float, ...],
    bgr: bool = False,
) -> np.ndarray[Any, Any]:
    """What a network sees of stored images: scaled to [0, 1], resized, normalised.

    Resizing is bilinear with antialiasing and takes place only where height or width are others than the network's.
    Images of one channel fill all channels of the network equally.

    Args:
        images_NHWC: uint8 or uint16 [N, H, W, C] with C = 1 or as many channels as the network takes.
        input_shape: channels, height and width that the network takes.
        mean_C, std_C: of the pixels, in units of [0, 1] and the network's order of channels.
        bgr: whether the network takes the channels in the reverse order.

    Returns:
        float32 [N, C, H, W], contiguous.
    """
    count, old_height, old_width, stored = images_NHWC.shape
    _, height, width = input_shape
    planes_NCHW = images_NHWC.transpose(0, 3, 1, 2)
    if (old_height, old_width) != (height, width):
        value_bytes = images_NHWC.dtype.itemsize
        rows = resize_weights(old_height, height, value_bytes=value_bytes)
        columns = resize_weights(old_width, width, value_bytes=value_bytes)
        strips = rows @ images_NHWC.reshape(count, old_height, old_width * stored).astype(np.float64)
        planes_NCHW = strips.reshape(count, height, old_width, stored).transpose(0, 3, 1, 2) @ columns.T
    if bgr:
        planes_NCHW = planes_NCHW[:, ::-1]
    mean_C11, std_C11 = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (mean_C, std_C))
    white = np.float32(np.iinfo(images_NHWC.dtype).max)
    normalised_NCHW = (planes_NCHW.astype(np.float32) / white - mean_C11) / std_C11
    return np.ascontiguousarray(np.broadcast_to(normalised_NCHW, (count, *input_shape)))
