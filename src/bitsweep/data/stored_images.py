"""Images in a file that is checked, a block at a time, when its images are first asked for.

So a file of any size is opened at once, and nothing that was damaged is ever handed on.

Shape letters: N images, H height, W width, C channels, B blocks.
"""

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from bitsweep.errors import DataError
from bitsweep.results import Array, Images

#: Bytes of the images of a block together, at most, if it has more than one.
_BLOCK_BYTES = 1 << 15
_DIGEST_BYTES = 32


class StoredImages:
    """Images [N, H, W, C] in an ``.npy`` file, with what their blocks were when they were written.

    Used like an array: what is asked for by numbers or a slice comes as one.
    """

    def __init__(self, file: Path, checks_B: Array) -> None:
        """Open a file; its images are not read yet.

        Args:
            checks_B: see `Checks`.

        Raises:
            OSError, ValueError: there is no such file, or it has another size.
        """
        self._file, self._checks = file, checks_B
        self._mapped: Array = np.load(file, mmap_mode="r", allow_pickle=False)
        self._rows = _rows(self._mapped.shape, self._mapped.dtype)
        if len(checks_B) != math.ceil(len(self._mapped) / self._rows):
            raise ValueError(f"{file.name} has another number of images than were written")
        self._open_B = np.ones(len(checks_B), dtype=bool)

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, H, W, C]."""
        return tuple(self._mapped.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels."""
        found: np.dtype[Any] = self._mapped.dtype
        return found

    @property
    def nbytes(self) -> int:
        """Of all pixels."""
        return int(self._mapped.nbytes)

    def __len__(self) -> int:
        return len(self._mapped)

    def __getitem__(self, chosen: Array | slice) -> Array:
        """The chosen images, in memory if they are chosen by numbers.

        Raises:
            DataError: they are not what was written.
        """
        if self._open_B.any():
            numbers = np.arange(*chosen.indices(len(self))) if isinstance(chosen, slice) else chosen
            blocks = np.unique(numbers % max(1, len(self)) // self._rows)
            self._check(blocks[self._open_B[blocks]])
        return self._mapped[chosen]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """All of them."""
        return np.array(self[:], dtype=dtype) if copy or dtype else np.asarray(self[:])

    def _check(self, blocks: Array) -> None:
        for number in blocks.tolist():
            block = self._mapped[number * self._rows : (number + 1) * self._rows]
            if _digest(block) != bytes(self._checks[number]):
                raise DataError(
                    f"{self._file}: image {number * self._rows} or one of the next {len(block) - 1} is not what was "
                    f"written there; delete the folder {self._file.parent} to rebuild it"
                )
            self._open_B[number] = False


class Checks:
    """Digests of blocks of images, taken as these pass."""

    def __init__(self, images: Images) -> None:
        """Begin with the first of such images."""
        self._rows = _rows(images.shape, images.dtype)
        self._kept: list[Array] = []
        self._digests: list[bytes] = []

    def add(self, images: Array) -> None:
        """Take the next images, as many as there are."""
        self._kept.append(images)
        if sum(map(len, self._kept)) >= self._rows:
            together = np.concatenate(self._kept) if len(self._kept) > 1 else images
            whole = len(together) // self._rows * self._rows
            self._digests += [_digest(together[start : start + self._rows]) for start in range(0, whole, self._rows)]
            self._kept = [together[whole:]] if whole < len(together) else []

    def finish(self) -> Array:
        """Of all blocks, uint8 [B, 32]; the last may have fewer images."""
        if self._kept:
            self._digests.append(_digest(np.concatenate(self._kept)))
            self._kept = []
        return np.frombuffer(b"".join(self._digests), np.uint8).reshape(-1, _DIGEST_BYTES)


def _rows(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Images in a block."""
    return max(1, _BLOCK_BYTES // max(1, math.prod(shape[1:]) * dtype.itemsize))


def _digest(images: Array) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(images).data).digest()
