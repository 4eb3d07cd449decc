"""Small files: locks, in whose place anything else would be waited for without end, and those written at once."""

import contextlib
import errno
import os
import stat
from pathlib import Path


def require_plain(file: Path) -> None:
    """See that a place is empty, or has a plain file: no folder, link or pipe.

    Raises:
        OSError: it has something else.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if not stat.S_ISREG(file.lstat().st_mode):
            raise OSError(errno.EEXIST, "it is not a plain file", str(file))


def write_whole(file: Path, text: str) -> None:
    """Write a file that nobody else may write to; whoever reads it meanwhile, or after a kill, finds what it held."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    partial.touch(mode=0o644)
    partial.write_text(text)
    partial.replace(file)
