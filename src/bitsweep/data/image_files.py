"""Photographs of any size and kind, decoded in parallel into one form.

Shape letters: N images, H height, W width, C channels.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bitsweep.data.pixels import StoredForm, as_stored, largest_values, read_picture, why_unreadable
from bitsweep.errors import DataError
from bitsweep.results import Array
from bitsweep.runtime.environment import physical_cores
from bitsweep.text import say

#: A picture: the file that it is in, what is in such a file, or itself, decoded.
Picture = Path | bytes | Image.Image

_NAMED = 5
_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """Images uint8 [N, H, W, C] that are decoded, in parallel, when they are asked for.

    Attributes:
        names: of the pictures, for errors.
        take: these by their numbers.
        form: what becomes of them, see `bitsweep.data.pixels.read_picture`.
        place: where they are, for errors.
    """

    names: Sequence[str]
    take: Callable[[Sequence[int]], Sequence[Picture]]
    form: StoredForm
    place: str

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, H, W, C]."""
        return (len(self.names), self.form.height, self.form.width, self.form.channels)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels."""
        return np.dtype(np.uint8)

    def __getitem__(self, chosen_N: Array) -> Array:
        """Decode the images with these numbers.

        Raises:
            DataError: some cannot be read. All are tried then, so that all such can be named at once.
        """
        # Pillow decodes and resizes outside the interpreter's lock.
        with ThreadPoolExecutor(physical_cores()) as pool:
            images = list(pool.map(self._image_or_reason, self.take(chosen_N.tolist())))
            decoded = [image for image in images if not isinstance(image, str)]
            if len(decoded) == len(images):
                return np.stack(decoded)
            bad = []
            for numbers in blocks_of(len(self.names)):
                found = zip(numbers, pool.map(self._reason, self.take(numbers)), strict=True)
                bad += [f"{self.names[number]} ({reason})" for number, reason in found if reason]
        say(*bad)
        more = f", and {len(bad) - _NAMED} more, listed in the log" if len(bad) > _NAMED else ""
        raise DataError(
            f"{self.place}: {len(bad)} of {len(self.names)} files are not readable as images: "
            f"{', '.join(bad[:_NAMED])}{more}; repair or delete them"
        )

    def _reason(self, picture: Picture) -> str:
        image = self._image_or_reason(picture)
        return image if isinstance(image, str) else ""

    def _image_or_reason(self, picture: Picture) -> Array | str:
        """The image, or why it cannot be read."""
        try:
            if isinstance(picture, Image.Image):
                return as_stored(picture, self.form)
            return read_picture(BytesIO(picture) if isinstance(picture, bytes) else picture, self.form)
        except MemoryError:
            raise
        except Exception as error:  # decoding something damaged can raise anything
            return why_unreadable(b"0" if isinstance(picture, Image.Image) else picture, error)


def files_in(folder: Path, names: Sequence[str]) -> Callable[[Sequence[int]], Sequence[Picture]]:
    """What takes the files with these names below a folder by their numbers."""
    return lambda numbers: [folder / names[number] for number in numbers]


def largest_of(blocks: Iterable[Sequence[Picture]]) -> tuple[int, int]:
    """The largest values of all pictures of 16 bits among these, grey and coloured; 0 where there are none."""
    found = [(0, 0)]
    with ThreadPoolExecutor(physical_cores()) as pool:
        for block in blocks:
            found += [pair for pair in pool.map(largest_values, block, chunksize=64) if any(pair)]
    return max(grey for grey, _ in found), max(colour for _, colour in found)


def blocks_of(count: int) -> Iterator[Sequence[int]]:
    """The numbers below a count, some at a time."""
    return (range(start, min(count, start + _AT_ONCE)) for start in range(0, count, _AT_ONCE))
