"""Photographs of any size and kind as squares of one size.

Shape letters: N images, S height and width in pixels.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitsweep.errors import DataError
from bitsweep.results import Array
from bitsweep.runtime.environment import physical_cores

if TYPE_CHECKING:
    from PIL import Image

_NAMED = 5
_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """Images uint8 [N, S, S, 3] that are decoded, in parallel, when they are asked for.

    Attributes:
        folder, names: where the files are.
        size, crop: see `read_square`.
    """

    folder: Path
    names: Sequence[str]
    size: int
    crop: float

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, S, S, 3]."""
        return (len(self.names), self.size, self.size, 3)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels."""
        return np.dtype(np.uint8)

    def __getitem__(self, chosen_N: Array) -> Array:
        """Decode the images with these numbers.

        Raises:
            DataError: some cannot be read. All files are tried then, so that all such can be named at once.
        """
        names = [self.names[number] for number in chosen_N]
        # Pillow decodes and resizes outside the interpreter's lock.
        with ThreadPoolExecutor(physical_cores()) as pool:
            squares = [square for square in pool.map(self._square_or_reason, names) if not isinstance(square, str)]
            if len(squares) == len(names):
                return np.stack(squares)
            bad = []
            for start in range(0, len(self.names), _AT_ONCE):
                bad += [reason for reason in pool.map(self._reason, self.names[start : start + _AT_ONCE]) if reason]
        print(*bad, sep="\n", flush=True)
        more = f", and {len(bad) - _NAMED} more, listed in the log" if len(bad) > _NAMED else ""
        raise DataError(
            f"{self.folder}: {len(bad)} of {len(self.names)} files are not readable as images: "
            f"{', '.join(bad[:_NAMED])}{more}; repair or delete them"
        )

    def _reason(self, name: str) -> str:
        square = self._square_or_reason(name)
        return square if isinstance(square, str) else ""

    def _square_or_reason(self, name: str) -> Array | str:
        """The image, or its name and why it cannot be read."""
        from PIL import UnidentifiedImageError

        file = self.folder / name
        try:
            return read_square(file, size=self.size, crop=self.crop)
        except UnidentifiedImageError:
            return f"{name} ({'no image' if file.stat().st_size else 'empty'})"
        except MemoryError:
            raise
        except Exception as error:  # decoding something damaged can raise anything
            return f"{name} ({' '.join(str(error).split())})"


def read_square(file: Path, *, size: int, crop: float = 1.0) -> Array:
    """The central square of an image, as a viewer shows it.

    It is turned as its EXIF data say; transparent parts are white; palettes, grey, CMYK and 16-bit channels become
    8-bit RGB; of several frames it is the first. The square has ``crop`` times the length of the short side, and is
    resized to ``size`` bilinearly with antialiasing. With 224 and 0.875 that is, to a level of rounding, what
    torchvision's ``Resize(256)`` and ``CenterCrop(224)`` do; but no more pixels are computed than are kept.

    Args:
        size: S, in pixels.
        crop: in (0, 1].

    Returns:
        uint8 [S, S, 3].

    Raises:
        OSError: it is no image, or is truncated; a decoder may raise other errors where it is damaged otherwise.
        ValueError: its numbers have no common white.
    """
    from PIL import Image, ImageOps

    with Image.open(file) as opened:
        image = _rgb(ImageOps.exif_transpose(opened))
    whole = round(size / crop)
    shortest = min(image.size)
    box: list[tuple[float, float]] = []
    for side in image.size:
        resized = whole * side // shortest
        start = round((resized - size) / 2)
        box.append((start * side / resized, min(side, (start + size) * side / resized)))
    (left, right), (top, bottom) = box
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom)))


def _rgb(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() >= 1 << 16:
            raise ValueError("32-bit pixels have no agreed white")
        return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("float pixels have no agreed white")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
