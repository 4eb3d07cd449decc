"""From the file of a picture to the pixels that are stored.

NumPy and Pillow are all that it needs: a bundle ships this file itself, so that what runs there sees, pixel for pixel,
what was measured.

Shape letters: N images, H height, W width, C channels.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

#: The value that is white in 16 bits.
DEEPEST = (1 << 16) - 1
#: Whites that cameras and scanners have: those of 8, 10, 12, 14 and 16 bits.
_WHITES = tuple((1 << bits) - 1 for bits in (8, 10, 12, 14, 16))
_JPEG = b"\xff\xd8\xff"
_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
#: Tags of TIFF: bits of each channel, what 0 shows, number of channels, how they lie, and whether they have a sign.
_BITS, _PHOTOMETRIC, _SAMPLES, _PLANES, _SIGN = 258, 262, 277, 284, 339
#: Pillow's filters by name.
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
#: Of the cubic that resizing without antialiasing interpolates with, as PyTorch and OpenCV do.
_CUBIC = -0.75


@dataclass(frozen=True, kw_only=True)
class Framing:
    """How pictures of any size become those that a network takes: resized, then padded, then cropped in the middle.

    It is what ``Resize``, ``Pad`` and ``CenterCrop`` of torchvision do with a picture of Pillow, pixel for pixel.

    Attributes:
        height, width, channels: of what is kept. Channels are 3 (RGB), 1 (its luminance) or 4 (with transparency).
        resize: the short side, or height and width; empty to keep the size; None to keep, instead of all this, the
            middle of the picture in the proportions of height and width, and to resize that.
        pad: black pixels at the left, top, right and bottom.
        interpolation: ``nearest``, ``bilinear`` or ``bicubic``.
        antialias: whether every pixel counts where a picture becomes smaller, as always with Pillow. PyTorch and OpenCV
            can leave out those between.
    """

    height: int
    width: int
    channels: int = 3
    resize: tuple[int, ...] | None = None
    pad: tuple[int, ...] = (0, 0, 0, 0)
    interpolation: str = "bilinear"
    antialias: bool = True


@dataclass(frozen=True, kw_only=True)
class StoredForm(Framing):
    """The form that pictures of any size and kind are stored in: uint8 [H, W, C].

    Attributes:
        crop: part of a picture that is kept, in (0, 1], along the side that has less to spare, where `resize` is None.
        white: the value that is white in pictures of 16 bits, which may hold 12 of them.
    """

    crop: float = 1.0
    white: int = DEEPEST


def read_picture(source: Path | BinaryIO, form: StoredForm) -> np.ndarray[Any, Any]:
    """A picture, as a viewer shows it, in a form.

    It is turned as its EXIF data say; transparent parts are white, unless there are four channels; palettes, grey,
    CMYK, YCbCr, LAB and 16-bit channels become 8-bit RGB; of several frames it is the first.

    Returns:
        uint8 [H, W, C].

    Raises:
        OSError: it is no picture, or is truncated; a decoder may raise other errors where it is damaged otherwise.
        ValueError: its numbers have no agreed white, or pictures have no such number of channels.
    """
    with Image.open(source) as opened:
        return as_stored(opened, form)


def as_stored(opened: Image.Image, form: StoredForm) -> np.ndarray[Any, Any]:
    """The same for a picture that is open."""
    if form.channels not in (1, 3, 4):
        raise ValueError(f"pictures have 1, 3 or 4 channels, not {form.channels}")
    _refuse_misread(opened, channels=form.channels)
    upright = ImageOps.exif_transpose(opened)
    clear = upright.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 255:  # of 16 bits, of which Pillow reads the upper half
        upright.info["transparency"] = tuple(value >> 8 for value in clear)
    picture = to_rgba(upright, white=form.white) if form.channels == 4 else to_rgb(upright, white=form.white)
    if form.channels == 1:
        picture = picture.convert("L")
    framed = middle(picture, form) if form.resize is None else frame(picture, form)
    return np.asarray(framed).reshape(form.height, form.width, form.channels)


def middle(picture: Image.Image, form: StoredForm) -> Image.Image:
    """The middle of a picture, in the proportions of a form, resized to its size.

    For 224 x 224 and a crop of 0.875 that is, to a level of rounding, what torchvision's ``Resize(256)`` and
    ``CenterCrop(224)`` do; but no more pixels are computed than are kept.
    """
    kept = form.width, form.height
    whole = [round(side / form.crop) for side in kept]
    tight = int(picture.width * whole[1] > picture.height * whole[0])  # the axis along which nothing is to spare
    box = []
    for side, wanted in zip(picture.size, kept, strict=True):
        resized = whole[tight] * side // picture.size[tight]
        start = round((resized - wanted) / 2)
        box.append((start * side / resized, min(side, (start + wanted) * side / resized)))
    (left, right), (top, bottom) = box
    return picture.resize(kept, _FILTERS[form.interpolation], box=(left, top, right, bottom))


def frame(picture: Image.Image, form: Framing) -> Image.Image:
    """A picture, in whatever mode of Pillow's, resized, padded and cropped."""
    assert form.resize is not None
    size = picture.size
    if len(form.resize) == 1:
        short, long = sorted(size)
        others = form.resize[0], int(form.resize[0] * long / short)
        size = others if size[0] <= size[1] else others[::-1]
    elif form.resize:
        size = form.resize[1], form.resize[0]
    if size != picture.size:
        picture = (
            picture.resize(size, _FILTERS[form.interpolation]) if form.antialias else _sampled(picture, size, form)
        )
    left, top, right, bottom = form.pad
    picture = picture.crop((-left, -top, picture.width + right, picture.height + bottom))  # black outside
    left, top = (
        round((side - wanted) / 2) if side >= wanted else -((wanted - side) // 2)
        for side, wanted in zip(picture.size, (form.width, form.height), strict=True)
    )
    return picture.crop((left, top, left + form.width, top + form.height))


def frame_array(image: np.ndarray[Any, Any], form: Framing) -> np.ndarray[Any, Any]:
    """The same for an image uint8 or uint16 [H, W, C] with any number of channels, each for itself.

    Of three channels a network of one takes the luminance. Height and width stay where ``resize`` is None.
    """
    if image.shape[2] == 3 and form.channels == 1:
        luminance = (image.astype(np.int64) @ np.array([19595, 38470, 7471]) + 0x8000) >> 16
        image = luminance.astype(image.dtype)[..., None]
    if form.resize is None:
        return image
    deep = image.dtype != np.uint8
    planes = [
        np.asarray(frame(Image.fromarray(plane.astype(np.float32) if deep else plane), form))
        for plane in np.ascontiguousarray(image.transpose(2, 0, 1))
    ]
    framed = np.stack(planes, 2)
    return np.rint(framed).clip(0, np.iinfo(image.dtype).max).astype(image.dtype) if deep else framed


def _sampled(picture: Image.Image, size: tuple[int, int], form: Framing) -> Image.Image:
    """A picture resized without antialiasing, as PyTorch's ``interpolate`` does it, to a level of rounding."""
    values = np.asarray(picture).astype(np.float64)
    for axis, new in enumerate(size[::-1]):
        old = values.shape[axis]
        if form.interpolation == "nearest":  # that at the left, where Pillow takes the one at the centre
            values = values.take((np.arange(new, dtype=np.float32) * np.float32(old / new)).astype(np.int64), axis)
            continue
        centre = (np.arange(new) + 0.5) * old / new - 0.5
        if form.interpolation == "bilinear":
            centre = centre.clip(0)
        first, part = np.floor(centre).astype(np.int64), centre % 1
        taps = {0: 1 - part, 1: part}
        if form.interpolation == "bicubic":
            taps = {
                -1: ((_CUBIC * (part + 1) - 5 * _CUBIC) * (part + 1) + 8 * _CUBIC) * (part + 1) - 4 * _CUBIC,
                0: ((_CUBIC + 2) * part - (_CUBIC + 3)) * part**2 + 1,
                1: ((_CUBIC + 2) * (1 - part) - (_CUBIC + 3)) * (1 - part) ** 2 + 1,
                2: ((_CUBIC * (2 - part) - 5 * _CUBIC) * (2 - part) + 8 * _CUBIC) * (2 - part) - 4 * _CUBIC,
            }
        along = [-1 if each == axis else 1 for each in range(values.ndim)]
        values = sum(  # type: ignore[assignment]
            values.take((first + step).clip(0, old - 1), axis) * weight.reshape(along) for step, weight in taps.items()
        )
    deep = picture.mode == "F"
    return Image.fromarray(values.astype(np.float32) if deep else np.rint(values).clip(0, 255).astype(np.uint8))


def why_unreadable(picture: Path | bytes, error: Exception) -> str:
    """What is wrong with a picture that could not be read, from a file or from its content, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        if isinstance(picture, bytes):
            head = picture[:4]
        else:
            with picture.open("rb") as stream:
                head = stream.read(4)
        return "a TIFF of a kind that Pillow cannot read" if head in _TIFF else "no image" if head else "empty"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return " ".join(str(error).split()) or type(error).__name__


def to_rgb(picture: Image.Image, *, white: int = DEEPEST) -> Image.Image:
    """A picture of any mode of Pillow's in 8-bit RGB, its transparent parts white.

    Raises:
        ValueError: its numbers have no agreed white.
    """
    if picture.mode.startswith("I"):
        return _from_deep(picture, white).convert("RGB")
    if picture.mode == "F":
        raise ValueError("float pixels have no agreed white")
    if picture.mode == "La":
        picture = picture.convert("LA")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if picture.getchannel("A").getextrema() == (0, 0):  # where programs mean that there is none
            raise ValueError("all of it is transparent; save it without transparency")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def to_rgba(picture: Image.Image, *, white: int = DEEPEST) -> Image.Image:
    """The same with its transparency as a fourth channel."""
    if picture.mode.startswith("I"):
        levels, seen = _levels(picture, white)
        return Image.merge("RGBA", [Image.fromarray(each) for each in (levels, levels, levels, seen)])
    return (picture if picture.has_transparency_data else to_rgb(picture, white=white)).convert("RGBA")


def largest_values(picture: Path | bytes | Image.Image) -> tuple[int, int]:
    """The largest value of a picture of 16 bits, if it is grey and if it is not; 0 otherwise.

    Of colours in 16 bits Pillow reads the upper half only: their value is the largest that it can be.
    """
    if isinstance(picture, Image.Image):
        return int(np.asarray(picture).max()) if picture.mode.startswith("I") else 0, 0
    with io.BytesIO(picture) if isinstance(picture, bytes) else picture.open("rb") as stream:
        if stream.read(len(_JPEG)) == _JPEG:  # the most frequent kind, and never of 16 bits
            return 0, 0
        stream.seek(0)
        try:
            with Image.open(stream) as opened:
                if opened.mode.startswith("I"):
                    return int(np.asarray(opened).max()), 0
                deep = any(";16" in str(tile[3]) for tile in opened.tile)
                return 0, (int(np.asarray(opened.convert("RGB")).max()) << 8) + 255 if deep else 0
        except MemoryError:
            raise
        except Exception:  # decoding something damaged can raise anything; it is named where its pixels are needed
            return 0, 0


def white_of(largest: int) -> int:
    """The white of pictures of 16 bits whose largest value is this: that of 8, 10, 12, 14 or 16 bits."""
    return next((white for white in _WHITES if largest <= white), DEEPEST) if largest > 0 else DEEPEST


def _refuse_misread(opened: Image.Image, *, channels: int) -> None:
    """Refuse TIFF files that Pillow reads without an error, and as something else than they show.

    Of RGB and further channels it leaves the others out: a network of three needs no more.

    Raises:
        ValueError: what such a file holds.
    """
    tags = getattr(opened, "tag_v2", {})
    bits = max(tags.get(_BITS, (1,)))
    if bits == 8 and 2 in tags.get(_SIGN, ()):
        raise ValueError("negative pixels have no agreed black")
    if bits == 32 and set(tags.get(_SIGN, (1,))) == {1} and int(np.asarray(opened).min()) < 0:  # read as signed
        raise ValueError("32-bit pixels have no agreed white")
    if bits > 8 and tags.get(_PLANES) == 2:
        raise ValueError("Pillow misreads 16-bit channels that lie apart; save them interleaved")
    if opened.mode.startswith("I") and tags.get(_PHOTOMETRIC) == 0:
        raise ValueError("Pillow shows 16-bit pixels whose 0 is white as negatives; save them with 0 as black")
    held, seen = tags.get(_SAMPLES, 1), len(opened.getbands())
    if channels > seen and held > seen:
        raise ValueError(f"Pillow reads {seen} of its {held} channels; dataset=npz takes arrays of all of them")


def _from_deep(picture: Image.Image, white: int) -> Image.Image:
    """Grey of 16 bits in 8, its transparent parts white."""
    levels, seen = _levels(picture, white)
    return Image.fromarray(np.where(seen, levels, np.uint8(255)))


def _levels(picture: Image.Image, white: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Grey of 16 bits in 8, and 255 where it is seen or 0 where it is transparent; both uint8 [H, W]."""
    values = np.asarray(picture)
    if values.min() < 0:
        raise ValueError("negative pixels have no agreed black")
    if values.max() > DEEPEST:
        raise ValueError("32-bit pixels have no agreed white")
    levels = (510 * np.minimum(values, white).astype(np.int64) + white) // (2 * white)
    clear = picture.info.get("transparency")
    seen = np.full(values.shape, 255) if clear is None else np.where(values == clear, 0, 255)
    return levels.astype(np.uint8), seen.astype(np.uint8)
