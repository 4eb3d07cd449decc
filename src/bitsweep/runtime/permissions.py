"""Who may write a store: its owner alone, because what is found in it is loaded and run."""

import contextlib
import itertools
import os
import stat
from collections.abc import Iterable
from pathlib import Path

#: Group and others may write.
_OTHERS_WRITE = 0o022
#: Others may, who are of no group.
_ANYBODY_WRITES = 0o002


def make_folder(folder: Path) -> None:
    """Make a folder that only its owner may write, whatever the user's umask allows."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    folder.mkdir(exist_ok=True, mode=0o755)


def keeps_modes(probe: Path) -> bool:
    """Whether a file that was made for its owner alone is so: some file systems know no modes."""
    return not probe.stat().st_mode & _OTHERS_WRITE


def open_to_others(root: Path, patterns: Iterable[str]) -> Path | None:
    """The first place that others may write, of a folder and what is found in it; None where there is none.

    A group of one's own may write what is one's own.
    """
    places = itertools.chain([root], *map(root.glob, patterns))
    return next(filter(_is_open, places), None)


def _is_open(path: Path) -> bool:
    try:
        about = path.stat()
    except FileNotFoundError:  # finished by another process meanwhile
        return False
    return bool(about.st_mode & (_ANYBODY_WRITES if about.st_uid == os.geteuid() else _OTHERS_WRITE))


def close_to_others(folder: Path) -> None:
    """Take the right to write from others where anybody may, for a folder and all that is in it."""
    for path in (folder, *folder.rglob("*")):
        mode = path.stat().st_mode
        if mode & _ANYBODY_WRITES:
            with contextlib.suppress(PermissionError):  # of file systems without modes
                path.chmod(stat.S_IMODE(mode & ~_OTHERS_WRITE))
