"""Photographs of any size and kind, decoded in parallel into one form.

Shape letters: N images, H height, W width, C channels.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitsweep.data.pixels import StoredForm, largest_values, read_picture, why_unreadable
from bitsweep.errors import DataError
from bitsweep.results import Array
from bitsweep.runtime.environment import physical_cores

_NAMED = 5
_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """Images uint8 [N, H, W, C] that are decoded, in parallel, when they are asked for.

    Attributes:
        folder, names: where the files are.
        form: what becomes of them, see `bitsweep.data.pixels.read_picture`.
    """

    folder: Path
    names: Sequence[str]
    form: StoredForm

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
            DataError: some cannot be read. All files are tried then, so that all such can be named at once.
        """
        names = [self.names[number] for number in chosen_N]
        # Pillow decodes and resizes outside the interpreter's lock.
        with ThreadPoolExecutor(physical_cores()) as pool:
            images = [image for image in pool.map(self._image_or_reason, names) if not isinstance(image, str)]
            if len(images) == len(names):
                return np.stack(images)
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
        image = self._image_or_reason(name)
        return image if isinstance(image, str) else ""

    def _image_or_reason(self, name: str) -> Array | str:
        """The image, or its name and why it cannot be read."""
        file = self.folder / name
        try:
            return read_picture(file, self.form)
        except MemoryError:
            raise
        except Exception as error:  # decoding something damaged can raise anything
            return f"{name} ({why_unreadable(file, error)})"


def largest_of(folder: Path, names: Sequence[str]) -> tuple[int, int]:
    """The largest values of all pictures of 16 bits among these files, grey and coloured; 0 where there are none."""
    blocks = (names[start : start + _AT_ONCE] for start in range(0, len(names), _AT_ONCE))
    with ThreadPoolExecutor(physical_cores()) as pool:
        found = [
            pair
            for block in pool.map(lambda block: [largest_values(folder / name) for name in block], blocks)
            for pair in block
        ]
    return max((grey for grey, _ in found), default=0), max((colour for _, colour in found), default=0)
