"""The folder in which multiprocessing keeps its sockets: removed by the next start where its process was killed."""

import contextlib
import multiprocessing.process
import multiprocessing.util
import os
import shutil
import tempfile
from pathlib import Path

#: In such a folder, a file that the process which made it has locked: the system lets go of it however that one ends.
_HELD = "held-by-bitsweep"
#: Descriptors of the files that this process holds, by its id.
_held: dict[int, int] = {}


def hold_sockets() -> None:
    """Hold the folder of this process, and remove those that nobody holds any more. Folders of others stay."""
    if os.getpid() in _held or os.name != "posix":
        return
    with contextlib.suppress(OSError):  # a disk that is full or knows no locks: then they stay
        for held in Path(tempfile.gettempdir()).glob(f"pymp-*/{_HELD}"):
            if _is_left(held):
                shutil.rmtree(held.parent, ignore_errors=True)
        # A process knows the folder of the one that started it, and would take its place as the holder.
        multiprocessing.process.current_process()._config["tempdir"] = None  # type: ignore[attr-defined]
        folder = Path(multiprocessing.util.get_temp_dir())
        descriptor = os.open(folder / f"{_HELD}.new", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        _held[os.getpid()] = descriptor
        _lock(descriptor)
        (folder / f"{_HELD}.new").rename(folder / _HELD)  # never there without being locked


def _is_left(held: Path) -> bool:
    """Whether the process that locked a file has ended."""
    with contextlib.suppress(OSError):
        descriptor = os.open(held, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            _lock(descriptor)
            return os.fstat(descriptor).st_uid == os.getuid()
        finally:
            os.close(descriptor)
    return False


def _lock(descriptor: int) -> None:
    import fcntl  # not everywhere

    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
