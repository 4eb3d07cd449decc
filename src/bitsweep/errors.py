"""Errors that a user can act on: one line each, with the key, the value, what is allowed and the next step.

BitsweepError                 exit code 1
├── CompressionError          a network cannot be traced or compressed as it is
├── CellFailed                a child process crashed, was killed, or ran out of time or memory
├── UnreachableTarget         the machine that measures does not answer
├── StoreError                the artifact store or the disk under it cannot be used
├── MachineError              what keeps cells of one machine apart cannot be used
├── TrackingError             MLflow does not answer
└── UsageError(ValueError)    exit code 2: what was asked cannot be done as asked
    ├── ConfigError           a configuration value is unknown, of the wrong type or out of range
    ├── DataError             a data set is missing or cannot be read
    └── MissingPackage        an optional package is not installed
"""

import errno
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsweep.text import plain, shortened

if TYPE_CHECKING:
    from bitsweep.results import Array

#: Free bytes below which a disk counts as full.
_FULL = 1 << 20
#: As many characters are shown of an error of somebody else's.
_LONGEST = 300
#: How engines that have no error of their own for it say that memory ran out.
_OUT_OF_MEMORY = ("can't allocate memory", "failed to allocate memory", "out of memory", "bad_alloc")


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of Python or of any engine, says that memory ran out."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _OUT_OF_MEMORY)


def ran_out_of_space(error: BaseException, *folders: str | Path) -> bool:
    """Whether an error says that a disk is full, or says something else while the disk under one of the folders is."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(Path(folder).exists() and shutil.disk_usage(folder).free < _FULL for folder in folders)


def first_line(error: BaseException) -> str:
    """What an error of somebody else's says, without the lines that follow; its class where it says nothing.

    A line that ends in a colon is followed by the one that it announces.
    """
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    if first.endswith(":") and others:
        first = f"{first} {others[0]}"
    return plain(first) or type(error).__name__


def one_line(error: BaseException) -> str:
    """All that an error of somebody else's says, as one line; the middle of a long one is left out."""
    return shortened(plain(str(error)).strip() or type(error).__name__, _LONGEST)


class BitsweepError(Exception):
    """Base of all errors that are shown as one line, without a traceback."""

    exit_code = 1

    def __str__(self) -> str:
        return plain(super().__str__())

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors cross from one process to another as their text, whatever their classes are made from.
        return _with_text, (type(self), self.args)


def _with_text(kind: type[BitsweepError], args: tuple[Any, ...]) -> BitsweepError:
    error = kind.__new__(kind)
    error.args = args
    return error


class CompressionError(BitsweepError):
    """A network cannot be traced or compressed as it is."""


class CellFailed(BitsweepError):
    """The child process that did the work of a stage did not finish it."""


class UnreachableTarget(BitsweepError):
    """The machine that measures does not answer, or the connection to it was lost."""


class StoreError(BitsweepError):
    """The artifact store cannot be written or read."""


class MachineError(BitsweepError):
    """What keeps the cells of one machine apart cannot be used."""


class TrackingError(BitsweepError):
    """The MLflow tracking store cannot be used."""


class UsageError(BitsweepError, ValueError):
    """What was asked cannot be done as asked."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration value is unknown, of the wrong type, or out of range."""


class DataError(UsageError):
    """A data set is missing or cannot be read."""


class MissingPackage(UsageError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        wanted = f"'bitsweep[{extra}]'" if extra else package  # what every installation has, unless it was taken out
        super().__init__(f"{package} is not installed; run: pip install {wanted}")


def damaged(path: Path, error: BaseException | str) -> StoreError:
    """What to raise where a file of the store cannot be loaded.

    Args:
        error: what it was loaded by says.
    """
    reason = error if isinstance(error, str) else first_line(error)
    return StoreError(f"{path} cannot be loaded; delete its folder and run again: {reason}")


def require_images(images: "Array", shape: tuple[int, ...]) -> None:
    """Refuse images that an artifact does not take.

    Args:
        shape: C, H and W of those that it takes, in float32.

    Raises:
        DataError: they are of another type or shape.
    """
    if images.dtype != "float32" or images.shape[1:] != shape:
        given, expected = f"{images.dtype} {list(images.shape)}", ", ".join(map(str, shape))
        raise DataError(f"images: {given} given; the artifact takes float32 [N, {expected}]")
