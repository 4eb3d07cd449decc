"""Items of somebody's data set: pictures of Pillow, arrays or tensors, with a label each."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from bitsweep.errors import DataError, first_line


@dataclass(frozen=True, kw_only=True)
class Items:
    """All items of one data set, looked through once.

    Attributes:
        take: images by their numbers.
        labels: names or whole numbers.
        contents: a digest of the pixels of each image, and of how they are shown.
        sizes: all heights and widths that there are.
        classes: names by their numbers, where the data set has them as ``classes``.
    """

    take: Callable[[Sequence[int]], Sequence[Image.Image]]
    labels: Sequence[str | int]
    contents: Sequence[bytes]
    sizes: frozenset[tuple[int, int]]
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.contents)


def look_through(given: Any, *, what: str) -> Items:
    """Ask for every item of a data set that has a length and numbers, one after the other.

    Args:
        what: it is, for errors.

    Raises:
        DataError: it has no length or numbers; an item is no labelled image; it raises an error.
    """
    no_numbers = DataError(
        f"{what} is a {type(given).__name__}; give a torch Dataset that has a length and numbers (__len__ and "
        "__getitem__), or a list of items"
    )
    if not hasattr(given, "__len__") or not hasattr(given, "__getitem__"):
        raise no_numbers
    labels, contents, sizes = list[str | int](), list[bytes](), set[tuple[int, int]]()
    for number in range(len(given)):
        try:
            item = given[number]
        except NotImplementedError as error:  # an IterableDataset inherits a method that does nothing
            raise no_numbers from error
        except Exception as error:  # whatever code of somebody else's raises
            raise DataError(f"item {number} of {what}: {type(error).__name__}: {first_line(error)}") from error
        place = f"item {number} of {what}"
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"{place} is a {type(item).__name__}; it must be an image and its label")
        labels.append(_label(item[1], place))
        picture = as_picture(item[0], place)
        sizes.add((picture.height, picture.width))
        pixels = np.ascontiguousarray(picture).data.tobytes()
        shown = picture.getpalette(), picture.info.get("transparency"), picture.getexif().get(ExifTags.Base.Orientation)
        contents.append(hashlib.sha256(f"{picture.mode} {picture.size} {shown}".encode() + pixels).digest())
    names = getattr(given, "classes", ())
    classes = tuple(map(str, names)) if isinstance(names, list | tuple) else ()

    def take(numbers: Sequence[int]) -> Sequence[Image.Image]:
        return [as_picture(given[number][0], f"item {number} of {what}") for number in numbers]

    return Items(take=take, labels=labels, contents=contents, sizes=frozenset(sizes), classes=classes)


def as_picture(image: Any, what: str) -> Image.Image:
    """An image as a picture of Pillow.

    Arrays are [H, W] or [H, W, C], tensors [H, W] or [C, H, W], as torchvision has them, with 1, 3 or 4 channels of 8
    bits, or 1 of 16; numbers that are not whole are from 0 to 1.

    Raises:
        DataError: it is something else.
    """
    if isinstance(image, Image.Image):
        return image
    shape = list(getattr(image, "shape", ()))
    tensor = hasattr(image, "detach")
    array = np.asarray(image.detach().cpu() if tensor else image)
    if tensor and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.dtype.kind not in "uif" or array.shape[2] not in (1, 3, 4) or not array.size:
        order = "a tensor [C, H, W]" if tensor else "an array [H, W, C]"
        raise DataError(
            f"{what} has an image {type(image).__name__} {shape}; it must be a picture of Pillow, or {order} with 1, "
            "3 or 4 channels"
        )
    low, high = float(array.min()), float(array.max())
    if array.dtype.kind == "f":
        if not 0 <= low <= high <= 1:
            raise DataError(
                f"{what} has pixels from {low:.3g} to {high:.3g}; they must be from 0 to 1, before any normalisation, "
                "which model.mean and model.std do"
            )
        array = np.rint(255 * array).astype(np.uint8)
    elif array.dtype != np.uint8:
        deep = high > 255 and array.shape[2] == 1
        if low < 0 or high > (65_535 if deep else 255):
            raise DataError(f"{what} has pixels from {low:.0f} to {high:.0f}; they must be from 0 to 255")
        array = array.astype(np.uint16 if deep or (array.dtype == np.uint16 and array.shape[2] == 1) else np.uint8)
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array))


def _label(label: Any, what: str) -> str | int:
    value = label.item() if hasattr(label, "item") and np.asarray(label).size == 1 else label
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and float(value).is_integer():
        return int(value)
    if np.ndim(value):
        raise DataError(f"{what} has several labels; give one label an image: a name or a whole number")
    raise DataError(f"{what} has the label {str(value)[:40]}; labels are names or whole numbers")
