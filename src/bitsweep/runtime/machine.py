"""What the sweeps of one machine share: a private folder, and a lock that keeps measuring apart from all other work."""

import contextlib
import getpass
import os
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bitsweep.errors import MachineError
from bitsweep.runtime.plain_files import require_plain

#: Environment variable that names where else the shared folder is.
VARIABLE = "BITSWEEP_LOCK_FOLDER"
#: Seconds that one waits for other work before a line says so.
_SILENT_S = 60.0


def private_folder() -> Path:
    """A folder of this user on this machine, which nobody else may write.

    It does not follow TMPDIR, which clusters set to another folder for every job.

    Raises:
        MachineError: there can be none.
    """
    usual = Path("/tmp") if os.access("/tmp", os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
    try:
        folder = Path(os.environ.get(VARIABLE) or usual) / f"bitsweep-{_user()}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise MachineError(
            f"{error.filename or usual}: cannot be the folder that sweeps of this machine share "
            f"({error.strerror or error}); remove what is there, or set {VARIABLE} to another folder"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != _user() or found.st_mode & 0o022:
        raise MachineError(
            f"{folder}: is not a folder that is this user's alone; remove it, or set {VARIABLE} to another"
        )
    return folder


def check() -> None:
    """Make sure that measuring can be kept apart from other work, and set what libraries need to know of the user.

    A user of a container may have a number and nothing else; libraries ask for a name and a home, and fail late.

    Raises:
        MachineError: what keeps them apart cannot be used.
    """
    file = _lock_file()
    with _explained(file), contextlib.closing(sqlite3.connect(file, timeout=0)) as database:
        try:
            database.execute("select * from sqlite_master").fetchall()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = str(_user())
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(private_folder())


@contextlib.contextmanager
def working(*, quiet: bool) -> Iterator[None]:
    """Keep measuring apart from all other work on this machine: many may work, or one may measure.

    Raises:
        MachineError: what keeps them apart cannot be used.
    """
    from filelock import ReadWriteLock, Timeout

    file = _lock_file()
    with _explained(file):
        lock = ReadWriteLock(file)
        acquire = lock.acquire_write if quiet else lock.acquire_read
        try:
            acquire(timeout=_SILENT_S)
        except Timeout:
            what = "measure" if quiet else "work"
            print(f"waiting until other work on this machine lets it {what} ({file})", flush=True)
            acquire()
    try:
        yield
    finally:
        lock.release()


def _lock_file() -> Path:
    file = private_folder() / "measuring.db"
    with _explained(file):
        require_plain(file)
    return file


@contextlib.contextmanager
def holding(name: str) -> Iterator[None]:
    """Hold the lock of a name: sweeps of this user do one after the other what they do meanwhile.

    Raises:
        MachineError: there can be no lock.
    """
    from filelock import FileLock

    file = private_folder() / f"{name}.lock"
    try:
        require_plain(file)
        lock = FileLock(file)
        lock.acquire()
    except OSError as error:
        raise MachineError(
            f"{file}: cannot be a lock ({error.strerror or error}); remove it, or set {VARIABLE} to another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise MachineError(
            f"{file}: cannot be the lock that keeps measuring apart from other work ({reason}); remove it, or set "
            f"{VARIABLE} to another folder"
        ) from error


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0
