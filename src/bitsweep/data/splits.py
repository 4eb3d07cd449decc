"""From decoded images to training, validation and test splits, and from their pixels to what a network sees.

Shape letters: N images, H height, W width, C channels (1 or 3), S input size of the network.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitsweep.data.preprocessing import preprocessed
from bitsweep.errors import DataError
from bitsweep.results import Array, Images, RawData, RawSplit, Split, Splits
from bitsweep.runtime.progress import Progress, silent

if TYPE_CHECKING:
    import torch

_PARTS = ("train", "val", "test")
_BLOCK_BYTES = 1 << 25
#: What ``splits.json`` holds.
_ABOUT = ("classes", "mean_C", "std_C", "fingerprint", "crop", "white")
_ORIGINALS = "originals"
#: Bytes that the files of test images which are kept may have together.
_ORIGINAL_BYTES = 1 << 24


def make_splits(
    raw: RawData, *, val_share: float, seed: int, folder: Path | None = None, progress: Progress = silent
) -> Splits:
    """Hold out validation images from the training images, class by class, and fingerprint the result.

    Args:
        folder: where to write the splits, block by block as they are decoded, for `load_splits`: one .npy file an
            array, files of a few test images as they came, and ``splits.json``, which is written last. None keeps the
            arrays in memory.
        progress: gets how far it is.

    Raises:
        DataError: images and labels do not belong together, there are too few of them, or they cannot be decoded.
        OSError: the disk has no room for them.
    """
    for part, split in (("training", raw.train), ("test", raw.test)):
        _check(split, part=part, classes=raw.classes)
    val = stratified_indices(raw.train.labels, val_share, seed)
    held_out = np.zeros(len(raw.train), dtype=bool)
    held_out[val] = True
    if held_out.all() or not held_out.any():
        raise DataError(
            f"{len(raw.train)} training images are too few to hold out a share of {val_share} for validation"
        )
    if folder and shutil.disk_usage(folder).free < sum(
        math.prod(split.images.shape) for split in (raw.train, raw.test)
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    parts = {
        "train": (raw.train, np.flatnonzero(~held_out)),
        "val": (raw.train, np.flatnonzero(held_out)),
        "test": (raw.test, np.arange(len(raw.test))),
    }
    with progress("decoding", len(raw.train) + len(raw.test)) as advance:
        taken = {part: _take(*chosen, part=part, folder=folder, advance=advance) for part, chosen in parts.items()}
    mean_C, std_C = _moments(taken["train"].images)
    if not all(std_C):
        raise DataError("the training images are of one colour: a channel has the same value everywhere")
    fingerprint = _fingerprint(taken, raw.classes)
    splits = Splits(
        train=taken["train"],
        val=taken["val"],
        test=taken["test"],
        classes=raw.classes,
        mean_C=mean_C,
        std_C=std_C,
        fingerprint=fingerprint,
        crop=raw.crop,
        white=raw.white,
    )
    if folder:
        splits = replace(splits, originals=_keep_originals(raw, splits, folder / _ORIGINALS))
        about = {name: getattr(splits, name) for name in _ABOUT}
        (folder / "splits.json").write_text(json.dumps(about, indent=2) + "\n")
    return splits


def stratified_indices(labels: Array, share: float, seed: int) -> Array:
    """Indices of a share of the images, each class with its share of them, in random order.

    Args:
        labels: int64 [N].
        share: of all images, in [0, 1].
        seed: same seed, same indices.

    Returns:
        int64 [round(share * N)]. Classes are rounded by largest remainder: each is off by less than one image.
    """
    return _stratified(labels, round(share * len(labels)), seed)


def calibration_images(splits: Splits, count: int, seed: int) -> Array:
    """Training images to calibrate on, each class with its share, in random order: none of validation or test.

    Returns:
        uint8 [N, H, W, C] with N = ``count``, or all training images if there are fewer.
    """
    chosen = _stratified(splits.train.labels, min(count, len(splits.train)), seed)
    return np.asarray(splits.train.images[chosen])


def validation_batches(
    splits: Splits, count: int, *, image_size: int, seed: int, batch: int = 32
) -> "Iterator[tuple[torch.Tensor, torch.Tensor]]":
    """Validation images as the network sees them, float32 [N, 3, S, S], with their labels, int64 [N].

    Each class has its share of ``count`` images, or of all if there are fewer.
    """
    import torch

    chosen = _stratified(splits.val.labels, min(count, len(splits.val)), seed)
    images, labels = np.asarray(splits.val.images[chosen]), torch.from_numpy(np.asarray(splits.val.labels[chosen]))
    yield from zip(
        preprocessed(images, splits, image_size=image_size, batch=batch), torch.split(labels, batch), strict=True
    )


def load_splits(folder: Path) -> Splits:
    """Read saved splits, memory-mapped; the fingerprint is computed again and compared.

    Raises:
        DataError: a file is missing, truncated or changed; rebuild the splits from the raw files.
    """
    try:
        stored: dict[str, Any] = json.loads((folder / "splits.json").read_text())
        parts = {
            part: Split(images=_map(folder, part, "images"), labels=_map(folder, part, "labels")) for part in _PARTS
        }
        splits = Splits(
            train=parts["train"],
            val=parts["val"],
            test=parts["test"],
            classes=tuple(stored["classes"]),
            mean_C=tuple(stored["mean_C"]),
            std_C=tuple(stored["std_C"]),
            fingerprint=stored["fingerprint"],
            crop=stored["crop"],
            white=stored["white"],
            originals={int(file.stem): file for file in sorted((folder / _ORIGINALS).glob("*"))},
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"splits in {folder} cannot be read ({error}); delete the folder to rebuild them") from error
    if _fingerprint(parts, splits.classes) != splits.fingerprint:
        raise DataError(f"splits in {folder} are not what was written there; delete the folder to rebuild them")
    return splits


def _keep_originals(raw: RawData, splits: Splits, folder: Path) -> dict[int, Path]:
    """Copy the files of those `Splits.recorded` test images that come in files, as far as there is room for them."""
    kept: dict[int, Path] = {}
    room = _ORIGINAL_BYTES
    for place, number in enumerate(splits.recorded if raw.test_files else ()):
        file = raw.test_files[number]
        if (size := file.stat().st_size) <= room:
            room -= size
            folder.mkdir(exist_ok=True)
            suffix = file.suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,5}", file.suffix) else ""
            kept[place] = Path(shutil.copyfile(file, folder / f"{place:02}{suffix}"))
    return kept


def _stratified(labels: Array, count: int, seed: int) -> Array:
    classes, class_of_N, sizes_K = np.unique(labels, return_inverse=True, return_counts=True)
    exact_K = sizes_K * (count / len(labels))
    quota_K = np.floor(exact_K).astype(np.int64)
    # Rounding to 9 digits keeps equal remainders equal, so that ties fall to the first classes on every machine.
    most_wanting = np.argsort(-np.round(exact_K - quota_K, 9), kind="stable")
    quota_K[most_wanting[: count - int(quota_K.sum())]] += 1
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(class_of_N == k))[: quota_K[k]] for k in range(len(classes))]
    return rng.permutation(np.concatenate(chosen))


def _check(split: RawSplit, *, part: str, classes: tuple[str, ...]) -> None:
    images, labels = split.images, split.labels
    if images.dtype != np.uint8 or len(images.shape) != 4 or images.shape[3] not in (1, 3):
        raise DataError(f"{part} images are {images.dtype} {list(images.shape)}; they must be uint8 [N, H, W, 1 or 3]")
    if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        raise DataError(
            f"{part} labels are {labels.dtype} {list(labels.shape)}; they must be int64 [{images.shape[0]}]"
        )
    if not len(labels):
        raise DataError(f"there are no {part} images")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(
            f"{part} labels run from {labels.min()} to {labels.max()}, but there are {len(classes)} classes"
        )


def _take(split: RawSplit, chosen_N: Array, *, part: str, folder: Path | None, advance: Callable[[int], None]) -> Split:
    """The chosen images of a split, in memory or in a file of the folder."""
    start_s = time.monotonic()
    shape = (len(chosen_N), *split.images.shape[1:])
    labels = split.labels[chosen_N]
    if folder:
        np.save(folder / f"{part}_labels.npy", labels)
        with (folder / f"{part}_images.npy").open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for block in _blocks(split.images, chosen_N, advance):
                stream.write(block.data)
        images = _map(folder, part, "images")
        print(f"{part}: {len(labels)} images in {time.monotonic() - start_s:.1f} s", flush=True)
    else:
        images = np.concatenate(list(_blocks(split.images, chosen_N, advance)))
    return Split(images=images, labels=labels)


def _blocks(images: Images, chosen_N: Array, advance: Callable[[int], None] = lambda done: None) -> Iterator[Array]:
    """The chosen images, contiguous, as many at a time as are a small part of the memory."""
    size = max(1, _BLOCK_BYTES // math.prod(images.shape[1:]))
    for start in range(0, len(chosen_N), size):
        block = np.ascontiguousarray(images[chosen_N[start : start + size]])
        yield block
        advance(len(block))


def _moments(images_NHWC: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in units of [0, 1], exact, without a float copy of the images."""
    channels = range(images_NHWC.shape[3])
    counts_C256 = np.zeros((len(channels), 256), dtype=np.int64)
    for block in _blocks(images_NHWC, np.arange(len(images_NHWC))):
        for channel in channels:
            counts_C256[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
    codes = np.arange(256)
    mean_C = np.array([np.average(codes, weights=counts) for counts in counts_C256])
    variance_C = [
        np.average((codes - mean) ** 2, weights=counts) for mean, counts in zip(mean_C, counts_C256, strict=True)
    ]
    return tuple((mean_C / 255).tolist()), tuple((np.sqrt(variance_C) / 255).tolist())


def _fingerprint(parts: dict[str, Split], classes: tuple[str, ...]) -> str:
    digest = hashlib.sha256(json.dumps(classes).encode())
    for part in _PARTS:
        for array in (parts[part].images, parts[part].labels):
            digest.update(f"{part}{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _map(folder: Path, part: str, what: str) -> Array:
    array: Array = np.load(folder / f"{part}_{what}.npy", mmap_mode="r", allow_pickle=False)
    return array
