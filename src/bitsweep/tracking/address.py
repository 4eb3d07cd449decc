"""Where the tracking store is, and its database file: made whole or not at all, mended after it was moved."""

import contextlib
import hashlib
import logging
import os
import re
import shutil
import sqlite3
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bitsweep.errors import TrackingError, UsageError
from bitsweep.runtime.machine import holding, private_folder

log = logging.getLogger(__name__)

VARIABLE = "MLFLOW_TRACKING_URI"
#: What is said of a database in which bytes have changed.
DAMAGED = "is damaged: move it away, or restore a copy"
_DATABASE = "mlflow.db"
_ARTIFACTS = "mlruns"
_SECRET = "password|passwd|token|secret"
_TABLES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


@dataclass(frozen=True, kw_only=True)
class Address:
    """The address of a tracking store.

    Attributes:
        uri: as MLflow takes it; it may hold a password, and is never shown.
        shown: the same without a password.
        database: SQLite file, None where there is a server.
        chosen: whether the environment names it; else it is MLflow's default in the working directory.
    """

    uri: str
    shown: str
    database: Path | None
    chosen: bool

    @property
    def served(self) -> bool:
        """Whether a server of MLflow answers there, which has the UI too."""
        return self.uri.startswith("http")

    @property
    def artifacts(self) -> str | None:
        """Where artifacts of new experiments go: beside the database; None to leave that to a server."""
        return (self.database.parent / _ARTIFACTS).as_uri() if self.database else None

    @property
    def named(self) -> str:
        """How messages call it."""
        return f"{VARIABLE}={self.shown}" if self.chosen else self.shown

    def without_password(self, text: str) -> str:
        """A text of MLflow or of a database in which no password of this address is left."""
        text = text.replace(self.uri, self.shown)
        for secret in _secrets(self.uri):
            text = text.replace(secret, "***")
        return text


def find_address() -> Address:
    """The store that ``MLFLOW_TRACKING_URI`` names, or else ``mlflow.db`` in the working directory."""
    given = os.environ.get(VARIABLE, "").strip()
    if given:
        return Address(uri=given, shown=_shown(given), database=_database(given), chosen=True)
    file = Path.cwd() / _DATABASE
    # MLflow and its database library read some characters as parts of an address.
    plain = _linked(file.parent) / _DATABASE if re.search("[%?#]", str(file)) else file
    uri = f"sqlite:///{plain}"
    return Address(uri=uri, shown=f"sqlite:///{file}", database=file, chosen=False)


def _linked(folder: Path) -> Path:
    """A name of a folder that needs no encoding in an address."""
    link = private_folder() / f"folder-{_hash(folder)}"
    with contextlib.suppress(FileExistsError):
        link.symlink_to(folder)
    return link


def _hash(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def _shown(uri: str) -> str:
    # To the last "@": a password may have a slash that nobody encoded.
    uri = re.sub(r"(?<=://)([^/@:]*):(.*)@", r"\1:***@", uri)
    uri = re.sub(r"^(https?://)[^/@:]+@", r"\1***@", uri)
    return re.sub(rf"(?i)((?:{_SECRET})=)[^&]*", r"\1***", uri)


def _secrets(uri: str) -> list[str]:
    """What of an address nobody is to see, as it is written there and as it is meant."""
    named = re.search(r"://[^/@:]*:(.*)@", uri) or re.match(r"https?://([^/@:]+)@", uri)
    found = [named[1]] if named else []
    found += re.findall(rf"(?i)(?:{_SECRET})=([^&]*)", uri)
    return sorted({each for secret in found for each in (secret, unquote(secret)) if each}, key=len, reverse=True)


def _database(uri: str) -> Path | None:
    name = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]*)(?:\?.*)?", uri)
    return Path(name[1]).absolute() if name and name[1] not in ("", ":memory:") else None


def prepare_database(address: Address, *, read_only: bool) -> None:
    """Make the SQLite file of an address where there is none, and see at once whether it can be used.

    MLflow makes one in dozens of steps, and cannot go on where it was killed in between; and it tries for minutes to
    open what cannot be opened.

    Raises:
        UsageError: it is only to be read, and is not there.
        TrackingError: it cannot be opened or written, or is not a database of MLflow.
        OSError: the disk is full.
    """
    if (file := address.database) is None:
        return
    if not file.exists() and read_only:
        raise UsageError(f"{file}: there is no such file; run this in the folder of the sweep, or set {VARIABLE}")
    if not file.exists():
        _create(file, artifacts=address.artifacts or "")
    if not file.is_file():
        raise TrackingError(f"{address.named}: {file} is not a file; {elsewhere(address)}")
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=60)) as database:
            if not read_only:
                database.execute("begin immediate")
            known = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
            database.rollback()
            _require_whole(database, thorough=read_only)
        if "experiments" in known:
            _mend(file)
    except sqlite3.Error as error:
        raise TrackingError(f"{address.named}: {file} {_why(error)} ({error}); {elsewhere(address)}") from error
    if known and "experiments" not in known:
        raise TrackingError(f"{address.named}: {file} is a database of something else; {elsewhere(address)}")


def _require_whole(database: sqlite3.Connection, *, thorough: bool) -> None:
    """See that what is read is what was written: runs of a damaged database may be missing without an error.

    Args:
        thorough: whether indexes lead to all rows, too, which takes a second for 100 MB, and else a seventh of it.

    Raises:
        sqlite3.DatabaseError: it is damaged.
    """
    ((found, *_),) = database.execute(f"pragma {'integrity' if thorough else 'quick'}_check(1)").fetchall()
    if found != "ok":
        error = sqlite3.DatabaseError(found)
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error


def _why(error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return {
        sqlite3.SQLITE_READONLY: "cannot be written: make the file and its folder writable",
        sqlite3.SQLITE_BUSY: "has been locked by another program for a minute: end that one",
        sqlite3.SQLITE_NOTADB: "is not a database: move it away",
        sqlite3.SQLITE_CORRUPT: DAMAGED,
        sqlite3.SQLITE_CANTOPEN: "cannot be opened: make its folder readable and writable",
    }.get(code, "cannot be used")


def elsewhere(address: Address) -> str:
    """Where else the store may be."""
    if address.chosen:
        return f"or unset {VARIABLE} to use {_DATABASE} in this folder"
    return f"or set {VARIABLE} to another database"


def quiet_mlflow(*, served: bool = False) -> None:
    """Import MLflow, made to say nothing itself: what it raises is told in a line, without its own traceback.

    Args:
        served: whether only a server is asked, so that nothing of databases need be imported.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # Its thread changes the environment while requests read it: one may fail with '_MLFLOW_TELEMETRY_SESSION_ID'.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    if not served:
        import mlflow.store.db.utils

        mlflow.store.db.utils.MAX_RETRY_COUNT = 1
    for chatty in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def _create(file: Path, *, artifacts: str) -> None:
    quiet_mlflow()
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory(prefix="database-", dir=private_folder()) as scratch:
        new = Path(scratch) / f"{uuid.uuid4().hex}.db"
        with contextlib.chdir(scratch):  # a short address that needs no encoding, whatever this folder is called
            MlflowClient(tracking_uri=f"sqlite:///{new.name}").search_experiments(max_results=1)
        with contextlib.closing(sqlite3.connect(new)) as database, database:
            database.execute("update experiments set artifact_location = ? || '/' || experiment_id", (artifacts,))
        _publish(new, file)


def _publish(new: Path, file: Path) -> None:
    """Copy a file to where nothing is yet, at once; another process may be first. Not every disk has hard links."""
    for left in file.parent.glob(f"{file.name}.*.partial"):
        if not _lives(left.name.split(".")[-2]):
            left.unlink(missing_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    with holding(f"database-{_hash(file)}"):
        if file.exists():
            return
        try:
            shutil.copyfile(new, partial)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)


def _lives(pid: str) -> bool:
    import psutil

    return pid.isdecimal() and psutil.pid_exists(int(pid))


def _mend(file: Path) -> None:
    """Let artifacts be looked for beside a database that was moved or copied with them."""
    beside = file.parent / _ARTIFACTS
    with contextlib.closing(sqlite3.connect(file, timeout=60)) as database, database:
        for (old,) in database.execute("select artifact_location from experiments").fetchall():
            folder = Path(unquote(urlsplit(old or "").path) if (old or "").startswith("file:") else old or "")
            new = beside / folder.name
            if not folder.is_absolute() or folder.parent.name != _ARTIFACTS or folder == new:
                continue
            if not new.exists() and folder.parent.exists():  # where somebody chose to have them
                continue
            for table, column in _TABLES:
                database.execute(
                    f"update {table} set {column} = ? || substr({column}, ?) "
                    f"where {column} = ? or substr({column}, 1, ?) = ?",
                    (new.as_uri(), len(old) + 1, old, len(old) + 1, f"{old}/"),
                )
            if new.exists():
                log.warning(
                    "%s was moved: artifacts are looked for in %s, no longer in %s", file, beside, folder.parent
                )
