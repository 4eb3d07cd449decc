"""Images that are given as tensors, as a network takes them: one batch, or one after the other, with or without labels.

Shape letters: N images, C channels, H height, W width.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from bitsweep.data.sampling import stratified_share
from bitsweep.errors import DataError, first_line
from bitsweep.results import Array, Split, Splits

if TYPE_CHECKING:
    import torch

#: Of labelled images, the share that is held out to validate on.
_VALIDATION_SHARE = 0.1


def collected(given: "torch.Tensor | Array | Iterable[Any]", *, most: int | None) -> tuple[Array, Array | None]:
    """Images float32 [N, C, H, W], and their labels int64 [N] where every batch has some.

    Args:
        given: all images at once, or batches, each of images or of a pair of images and labels.
        most: as many are taken of batches before no more is asked for; None takes all.

    Raises:
        DataError: they are no images, or not all of one size.
    """
    batches: Any = [given] if hasattr(given, "shape") else given
    if not isinstance(batches, Iterable) or isinstance(batches, str | bytes | dict):
        raise DataError(f"images: a {type(given).__name__} given; give a tensor or an array [N, C, H, W], or batches")
    images, labels = list[Array](), list[Array]()
    for batch in batches:
        pair = isinstance(batch, tuple | list) and len(batch) == 2 and all(hasattr(each, "shape") for each in batch)
        one = _array(batch[0] if pair else batch)
        if one.ndim != 4 or not len(one) or (images and one.shape[1:] != images[0].shape[1:]):
            first = f", after {list(images[0].shape)}" if images else ""
            raise DataError(f"images: {list(one.shape)} given{first}; give all as float [N, C, H, W] of one size")
        images.append(one.astype(np.float32))
        if pair:
            labels.append(_array(batch[1]).astype(np.int64).reshape(-1))
        if most is not None and sum(map(len, images)) >= most:
            break
    if not images:
        raise DataError("images: there are none; give at least one batch")
    together = np.concatenate(images)
    if not np.isfinite(together).all():
        raise DataError("images: they hold values that are not finite")
    labels_N = np.concatenate(labels) if len(labels) == len(images) else None
    return together, labels_N if labels_N is not None and len(labels_N) == len(together) else None


def splits_of_batches(images_NCHW: Array, labels_N: Array | None, *, classes: int, learns: bool) -> Splits:
    """The images as a data set whose pixels are taken as they are.

    Args:
        labels_N: None for images to choose ranges on, and nothing else.
        learns: whether labelled ones are to be learned from; some of them are held out then. Otherwise ranges are
            chosen on all of them, and a method that evaluates its steps does so on them.
    """
    images_NHWC = np.ascontiguousarray(images_NCHW.transpose(0, 2, 3, 1))
    none = Split(images=images_NHWC[:0], labels=np.zeros(0, np.int64))
    train = val = none
    test = none if labels_N is None else Split(images=images_NHWC, labels=labels_N)
    if labels_N is not None and learns:
        held_out = np.zeros(len(labels_N), bool)
        held_out[stratified_share(labels_N, _VALIDATION_SHARE, 0)] = True
        train, val = (Split(images=images_NHWC[part], labels=labels_N[part]) for part in (~held_out, held_out))
        test = val
    channels = images_NHWC.shape[3]
    return Splits(
        train=train,
        val=val,
        test=test,
        classes=tuple(map(str, range(classes))),
        mean_C=(0.0,) * channels,
        std_C=(1.0,) * channels,
        fingerprint="",
        unlabelled=None if learns else images_NHWC,
    )


def _array(value: Any) -> Array:
    """A tensor or whatever NumPy takes, as an array."""
    try:
        return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except Exception as error:  # whatever a class of somebody else's raises
        raise DataError(f"images: a {type(value).__name__} is no array of numbers: {first_line(error)}") from error
