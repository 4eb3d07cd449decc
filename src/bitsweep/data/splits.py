"""From decoded images to training, validation and test splits, in memory or in a folder.

Shape letters: N images, H height, W width, C channels.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bitsweep.data.pixels import Framing
from bitsweep.data.sampling import held_out, stratified
from bitsweep.data.stored_images import Checks, StoredImages
from bitsweep.errors import DataError
from bitsweep.results import Array, Images, Pixels, RawData, RawSplit, Split, Splits
from bitsweep.runtime.progress import Progress, silent
from bitsweep.text import counted, say

#: That images may have.
MOST_CHANNELS = 16
_PARTS = ("train", "val", "test")
_UNLABELLED = "unlabelled"
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

    Where there are no training images they are held out from the test images, unless calibration images are given.

    Args:
        folder: where to write the splits, block by block as they are decoded, for `load_splits`: one .npy file an
            array, files of a few test images as they came, and ``splits.json``, which is written last. None keeps the
            arrays in memory.
        progress: gets how far it is.

    Raises:
        DataError: images and labels do not belong together, there are too few of them, or they cannot be decoded.
        OSError: the disk has no room for them.
    """
    for split, part in ((raw.train, "training"), (raw.test, "test")):
        _check(split, part=part, classes=raw.classes)
    parts = _parts(raw, val_share, seed)
    labels = {part: split.labels[chosen_N] for part, (split, chosen_N) in parts.items()}
    sources = {part: (split.images, chosen_N) for part, (split, chosen_N) in parts.items()}
    if raw.calibration is not None:
        sources[_UNLABELLED] = raw.calibration, np.arange(raw.calibration.shape[0])
    size = sum(
        len(chosen_N) * math.prod(images.shape[1:]) * images.dtype.itemsize for images, chosen_N in sources.values()
    )
    if folder and shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    images, checks = dict[str, Pixels](), dict[str, Array]()
    with progress("decoding", sum(len(chosen_N) for _, chosen_N in sources.values())) as advance:
        for name, source in sources.items():
            images[name], checks[name] = _take(*source, part=name, folder=folder, advance=advance)
    kept = {part: Split(images=images[part], labels=labels[part]) for part in _PARTS}
    splits = Splits(
        train=kept["train"],
        val=kept["val"],
        test=kept["test"],
        classes=raw.classes,
        mean_C=(),
        std_C=(),
        fingerprint=_fingerprint(labels, checks, raw.classes),
        crop=raw.crop,
        white=raw.white,
        framing=raw.framing,
        unlabelled=images.get(_UNLABELLED),
    )
    mean_C, std_C = _moments((splits.train if len(splits.train) else splits.calibration).images)
    if len(splits.train) and not all(std_C):
        raise DataError("the training images are of one colour: a channel has the same value everywhere")
    # Given weights have a mean and deviation of their own; a few images to calibrate on may well be of one colour.
    splits = replace(splits, mean_C=mean_C, std_C=tuple(std or 1.0 for std in std_C))
    if folder:
        for part in _PARTS:
            np.save(folder / f"{part}_labels.npy", labels[part])
        files = [raw.test_files[number] for number in parts["test"][1]] if raw.test_files else []
        splits = replace(splits, originals=_keep_originals(files, splits, folder / _ORIGINALS))
        about = {name: getattr(splits, name) for name in _ABOUT} | {
            _UNLABELLED: splits.unlabelled is not None,
            "framing": splits.framing and vars(splits.framing),
        }
        (folder / "splits.json").write_text(json.dumps(about, indent=2) + "\n")
    return splits


def _parts(raw: RawData, val_share: float, seed: int) -> dict[str, tuple[RawSplit, Array]]:
    """What images, by their numbers, go into which part."""
    source = raw.train if len(raw.train) else raw.test
    count = len(source)
    if raw.calibration is not None and not len(raw.train):
        val = np.array([], np.int64)
    else:
        # Of classes with a single image each, those that lose it are drawn.
        order_K = np.random.default_rng(seed).permutation(len(raw.classes))
        labels = raw.train.labels if len(raw.train) else order_K[raw.test.labels]
        val = stratified(labels, held_out(count, val_share), seed)
    kept = np.setdiff1d(np.arange(count), val)
    if not len(kept):
        where, why = (
            ("training", "validation") if len(raw.train) else ("test", "calibration (or set dataset.calibration)")
        )
        raise DataError(f"{count} {where} images are too few to hold out a share of {val_share} for {why}")
    nothing = np.array([], np.int64)
    return {
        "train": (raw.train, kept if len(raw.train) else nothing),
        "val": (source, np.sort(val)),
        "test": (raw.test, np.arange(len(raw.test)) if len(raw.train) else kept),
    }


def load_splits(folder: Path) -> Splits:
    """Open saved splits. Labels are read and checked now, images when they are first asked for.

    Raises:
        DataError: a file is missing, truncated or changed; rebuild the splits from the raw files.
    """
    try:
        stored: dict[str, Any] = json.loads((folder / "splits.json").read_text())
        names = [name for name in (*_PARTS, _UNLABELLED) if name in _PARTS or stored[_UNLABELLED]]
        labels = {part: _load(folder, f"{part}_labels") for part in _PARTS}
        checks = {name: _load(folder, f"{name}_checks") for name in names}
        images = {name: StoredImages(folder / f"{name}_images.npy", checks[name]) for name in names}
        kept = {part: Split(images=images[part], labels=labels[part]) for part in _PARTS}
        splits = Splits(
            train=kept["train"],
            val=kept["val"],
            test=kept["test"],
            classes=tuple(stored["classes"]),
            mean_C=tuple(stored["mean_C"]),
            std_C=tuple(stored["std_C"]),
            fingerprint=stored["fingerprint"],
            crop=stored["crop"],
            white=stored["white"],
            framing=_framing(stored["framing"]),
            originals={int(file.stem): file for file in sorted((folder / _ORIGINALS).glob("*"))},
            unlabelled=images.get(_UNLABELLED),
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"splits in {folder} cannot be read ({error}); delete the folder to rebuild them") from error
    if _fingerprint(labels, checks, splits.classes) != splits.fingerprint:
        raise DataError(f"splits in {folder} are not what was written there; delete the folder to rebuild them")
    return splits


def _framing(stored: dict[str, Any] | None) -> Framing | None:
    if stored is None:
        return None
    about: dict[str, Any] = {key: tuple(each) if isinstance(each, list) else each for key, each in stored.items()}
    return Framing(**about)


def _keep_originals(files: Sequence[Path], splits: Splits, folder: Path) -> dict[int, Path]:
    """Copy the files of those `Splits.recorded` test images that come in files, as far as there is room for them.

    Args:
        files: of all test images; empty where these come otherwise.
    """
    kept: dict[int, Path] = {}
    room = _ORIGINAL_BYTES
    for place, number in enumerate(splits.recorded if files else ()):
        file = files[number]
        if (size := file.stat().st_size) <= room:
            room -= size
            folder.mkdir(exist_ok=True)
            suffix = file.suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,5}", file.suffix) else ""
            kept[place] = Path(shutil.copyfile(file, folder / f"{place:02}{suffix}"))
    return kept


def _check(split: RawSplit, *, part: str, classes: tuple[str, ...]) -> None:
    images, labels = split.images, split.labels
    whole = images.dtype in (np.uint8, np.uint16) and len(images.shape) == 4
    if not whole or not 1 <= images.shape[3] <= MOST_CHANNELS:
        raise DataError(
            f"{part} images are {images.dtype} {list(images.shape)}; they must be uint8 or uint16 [N, H, W, C] with "
            f"1 to {MOST_CHANNELS} channels"
        )
    if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        raise DataError(
            f"{part} labels are {labels.dtype} {list(labels.shape)}; they must be int64 [{images.shape[0]}]"
        )
    if not len(labels):
        if part == "test":
            raise DataError("there are no test images")
        return
    if labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(
            f"{part} labels run from {labels.min()} to {labels.max()}, but there are {len(classes)} classes"
        )


def _take(
    images: Images, chosen_N: Array, *, part: str, folder: Path | None, advance: Callable[[int], None]
) -> tuple[Pixels, Array]:
    """The chosen images, in memory or in a file of the folder, and what is kept to check them by."""
    start_s = time.monotonic()
    shape = (len(chosen_N), *images.shape[1:])
    checks = Checks(images)

    def checked() -> Iterator[Array]:
        for block in _blocks(images, chosen_N):
            checks.add(block)
            yield block
            advance(len(block))

    if not folder:
        taken: Array = np.concatenate([np.empty((0, *shape[1:]), images.dtype), *checked()])
        return taken, checks.finish()
    with (folder / f"{part}_images.npy").open("wb") as stream:
        descr = np.lib.format.dtype_to_descr(images.dtype)
        np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
        for block in checked():
            stream.write(block.data)
    checks_B = checks.finish()
    np.save(folder / f"{part}_checks.npy", checks_B)
    say(f"{part}: {counted(len(chosen_N), 'image')} in {time.monotonic() - start_s:.1f} s")
    return StoredImages(folder / f"{part}_images.npy", checks_B), checks_B


def _blocks(images: Images, chosen_N: Array) -> Iterator[Array]:
    """The chosen images, contiguous, as many at a time as are a small part of the memory."""
    size = max(1, _BLOCK_BYTES // (math.prod(images.shape[1:]) * images.dtype.itemsize))
    for start in range(0, len(chosen_N), size):
        yield np.ascontiguousarray(images[chosen_N[start : start + size]])


def _moments(images_NHWC: Pixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in units of [0, 1], exact, without a float copy of the images."""
    white, square = np.iinfo(images_NHWC.dtype).max, np.dtype(f"u{2 * images_NHWC.dtype.itemsize}")
    sum_C, squares_C = np.zeros((2, images_NHWC.shape[3]), dtype=np.int64)
    for block in _blocks(images_NHWC, np.arange(len(images_NHWC))):
        for total_C, values in ((sum_C, block), (squares_C, np.square(block, dtype=square))):
            total_C += values.sum(0, dtype=np.int64).sum((0, 1))
    count = math.prod(images_NHWC.shape[:3])
    # In whole numbers of any length the variance is exact, however small it is.
    variance_C = [(count * q - s * s) / count**2 for s, q in zip(sum_C.tolist(), squares_C.tolist(), strict=True)]
    return tuple(s / count / white for s in sum_C.tolist()), tuple(math.sqrt(each) / white for each in variance_C)


def _fingerprint(labels: dict[str, Array], checks: dict[str, Array], classes: tuple[str, ...]) -> str:
    """SHA-256 of the names of classes, of the labels, and of what images are checked by."""
    digest = hashlib.sha256(json.dumps(classes).encode())
    for kind, arrays in (("labels", labels), ("images", checks)):
        for part in sorted(arrays):
            digest.update(f"{kind} {part} {arrays[part].dtype.str} {arrays[part].shape}".encode())
            digest.update(np.ascontiguousarray(arrays[part]).data)
    return digest.hexdigest()


def _load(folder: Path, name: str) -> Array:
    array: Array = np.load(folder / f"{name}.npy", allow_pickle=False)
    return array
