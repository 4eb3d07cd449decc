"""Images and labels in archives of NumPy, with the keys that Keras and MedMNIST use."""

import hashlib
import lzma
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from bitsweep.data.class_names import number_labels
from bitsweep.data.splits import MOST_CHANNELS
from bitsweep.errors import DataError, first_line
from bitsweep.results import Array, RawData, Split
from bitsweep.text import counted, say

#: Keys of images and labels, for training and testing.
_CONVENTIONS = (
    (("x_train", "y_train"), ("x_test", "y_test")),
    (("train_images", "train_labels"), ("test_images", "test_labels")),
)
#: So many rows or less of more channels than that are taken for channels that come first.
_MOST_PLANES = 4
_ZIP = b"PK"
#: Labels from here on are not told apart as floats.
_TOO_LARGE = 1 << 53
#: So many times as large values are on another scale.
_UNLIKE = 8
#: What other files begin with, what they are, and what to do about it.
_OTHERS = (
    (b"\x1f\x8b", "is gzipped: unpack it with gunzip, and name the .npz that comes out"),
    (b"\x93NUMPY", "is a single array (.npy): save images and labels together with numpy.savez"),
    (b"\x80", "is a pickle, which could run code: save the arrays with numpy.savez"),
    (b"\x89HDF", "is an HDF5 file: save the arrays with numpy.savez"),
)


def read_npz(file: Path, *, key: str, classes: tuple[str, ...]) -> RawData:
    """Images uint8 or uint16 [N, H, W] or [N, H, W, C] with C from 1 to 16, and labels [N], [N, 1] or one-hot [N, K].

    What is unusual is printed.

    Args:
        key: of the setting that names the archive, with its value, for errors.
        classes: their names, for labels from 0 or from 1; none to name them by the labels that there are.

    Raises:
        DataError: the archive is damaged, lacks arrays, or holds arrays that do not belong together.
    """
    try:
        train, test = _read_parts(file)
        if train.images.shape[1:] != test.images.shape[1:]:
            shapes = " and ".join("x".join(map(str, part.images.shape[1:])) for part in (train, test))
            raise DataError(f"training and test images are {shapes}; they must be of one size and number of channels")
        height, width, channels = train.images.shape[1:]
        size = height if height == width else f"[{height},{width}]"
        if height != width or channels not in (1, 3):
            shape = f"model.image_size={size}" + (f" model.channels={channels}" if channels not in (1, 3) else "")
            say(f"images are {height} x {width} with {counted(channels, 'channel')}, as {shape} takes them")
        if train.images.dtype != test.images.dtype:
            raise DataError(
                f"training images are {train.images.dtype}, test images {test.images.dtype}; they must be of one kind"
            )
        return _named(train, test, classes)
    except DataError as error:
        raise DataError(f"{key}: {error}") from error


def check_parts(data: RawData, *, key: str, leaks: Literal["refuse", "keep"]) -> None:
    """Refuse images that no classifier can be trained and tested on.

    Args:
        leaks: whether to refuse test images that are training images too, or to keep and print them.

    Raises:
        DataError: there is a single class, or test images are training or calibration images too.
    """
    names = data.classes
    if len(names) < 2:
        raise DataError(f"{key}: all images are of class {names[0]}; there must be two classes or more")
    largest = [int(part.images[np.arange(len(part))].max()) for part in (data.train, data.test) if len(part)]
    if len(largest) == 2 and max(largest) >= _UNLIKE * min(largest):
        say(
            f"warning: the largest value of training images is {largest[0]}, that of test images {largest[1]}: "
            "are both on one scale?",
        )
    if max(largest) * _UNLIKE <= (white := np.iinfo(data.test.images.dtype).max):
        say(
            f"warning: the largest value of all images is {max(largest)}, and white is {white}: they are nearly black "
            "to a network; multiply them"
        )
    tested = list(map(_digest, data.test.images[np.arange(len(data.test))]))
    watched = {"training": data.train.images} | (
        {"calibration": data.calibration} if data.calibration is not None else {}
    )
    for kind, images in watched.items():
        seen = set(map(_digest, images[np.arange(images.shape[0])]))
        if count := sum(digest in seen for digest in tested):
            what = f"{count} of {len(data.test)} test images are {kind} images too"
            if leaks == "refuse":
                raise DataError(f"{key}: {what}; remove them, or set dataset.leaks=keep")
            say(f"warning: {what}")


def _read_parts(file: Path) -> tuple[Split, Split]:
    try:
        with file.open("rb") as stream:
            head = stream.read(8)
        for mark, what in _OTHERS:
            if head.startswith(mark):
                raise DataError(what)
        with zipfile.ZipFile(file) as packed:
            keys = [name.removesuffix(".npy") for name in packed.namelist()]
        if twice := [name for name in keys if keys.count(name) > 1]:
            raise DataError(f"holds {twice[0]} twice: save each array once")
        if not head.startswith(_ZIP):
            raise DataError("has something before the arrays: save them again with numpy.savez")
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            known = [pairs for pairs in _CONVENTIONS if {*pairs[1]} <= set(archive)]
            if not known or len(set(known[0][0]) & set(archive)) == 1:
                wanted = " or ".join(", ".join([*train, *test]) for train, test in _CONVENTIONS)
                raise DataError(f"has the keys {', '.join(archive)}; expected {wanted}, or the last two of them")
            of_train, of_test = known[0]
            beside = sorted(set(archive) - {*of_train, *of_test})
            unlike = [name for name in beside if name in (*_CONVENTIONS[0][0], *_CONVENTIONS[1][0])]
            if unlike and not set(of_train) <= set(archive):
                raise DataError(f"has {', '.join(unlike)} beside {', '.join(of_test)}: name all of them in one way")
            if beside:
                say(f"left out: {', '.join(beside)}; validation images are held out from training")
            test = _split(archive[of_test[0]], archive[of_test[1]], *of_test)
            if set(of_train) <= set(archive):
                train = _split(archive[of_train[0]], archive[of_train[1]], *of_train)
            else:
                train = Split(images=test.images[:0], labels=test.labels[:0])
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"does not fit the memory, or is damaged ({error})") from error
    except (
        OSError, ValueError, KeyError, OverflowError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError,
        RuntimeError,
    ) as error:  # fmt: skip
        if "allow_pickle=False" in str(error):
            raise DataError("holds arrays of Python objects, which could run code: save them as numbers") from error
        raise DataError(f"cannot be read as an .npz archive ({first_line(error)})") from error
    return train, test


def _split(images: Array, labels: Array, images_key: str, labels_key: str) -> Split:
    for array, array_key in ((images, images_key), (labels, labels_key)):
        if not isinstance(array, np.ndarray):  # what is no array is given as bytes
            raise DataError(f"{array_key} is no array: save it with numpy.savez")
    shape, channels = list(images.shape), images.shape[-1] if images.ndim == 4 else 1
    images = images.astype(images.dtype.newbyteorder("="), copy=False)
    channels_first = images.ndim == 4 and channels > images.shape[1] <= _MOST_PLANES
    whole = images.dtype in (np.uint8, np.uint16) and images.ndim in (3, 4) and 0 not in shape[1:]
    if not whole or channels > MOST_CHANNELS or channels_first:
        raise DataError(
            f"{images_key} is {images.dtype} {shape}; it must be uint8 or uint16 [N, H, W] or [N, H, W, C] with 1 to "
            f"{MOST_CHANNELS} channels, which come last"
        )
    if not len(images):
        raise DataError(f"{images_key} holds no images")
    if labels.shape[:1] != images.shape[:1]:
        raise DataError(f"{labels_key} has the shape {list(labels.shape)}, for {counted(len(images), 'image')}")
    if labels.dtype.kind in "fu" and labels.size and (np.abs(labels) >= _TOO_LARGE).any():
        raise DataError(f"{labels_key}: labels are up to {np.abs(labels).max():g}; they must be below 2^53")
    if np.issubdtype(labels.dtype, np.floating) and (np.mod(labels, 1) == 0).all():
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "biuU":
        raise DataError(f"{labels_key}: labels are {labels.dtype}; they must be whole numbers, or names")
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind != "U":
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all()):
            raise DataError(
                f"{labels_key} has the shape {list(labels.shape)} and not one 1 in every row: images of several "
                "classes, or of none, are not classified here; give one label an image"
            )
        labels = labels.argmax(1)
    if labels.size != len(images):
        raise DataError(
            f"{labels_key} has the shape {list(labels.shape)}; labels must be [N], [N, 1] or one-hot [N, K]"
        )
    labels = labels.reshape(-1) if labels.dtype.kind == "U" else labels.reshape(-1).astype(np.int64)
    return Split(images=images[..., None] if images.ndim == 3 else images, labels=labels)


def _named(train: Split, test: Split, classes: tuple[str, ...]) -> RawData:
    """The same images with labels from 0, without gaps, and the names of the classes."""
    labels_N, names = number_labels(np.concatenate([train.labels, test.labels]).tolist(), classes)
    parts = (replace(train, labels=labels_N[: len(train)]), replace(test, labels=labels_N[len(train) :]))
    return RawData(train=parts[0], test=parts[1], classes=names)


def _digest(image: Array) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
