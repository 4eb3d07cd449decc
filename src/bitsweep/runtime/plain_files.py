"""Files that locks are: whatever else is in their place would be waited for without end."""

import contextlib
import errno
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
