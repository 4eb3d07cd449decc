"""Where the tracking store may be: in folders of any name, moved, read-only, spoilt, with a password."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bitsweep.errors import BitsweepError, MachineError, TrackingError, UsageError
from bitsweep.runtime.machine import private_folder
from bitsweep.tracking.address import VARIABLE, find_address, quiet_mlflow
from bitsweep.tracking.connection import Connection


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def log_something(connection: Connection) -> str:
    run_id = str(connection.client.create_run(connection.experiment_id).info.run_id)
    connection.client.log_dict(run_id, {"a": 1}, "a.json")
    return run_id


@pytest.mark.parametrize(
    "name", ["50%", "a%41b", "what?", "no#1", "two words", "é", "q'x\"y", "a;b&c=d@e:f", "[a]{b}$(c)"]
)
@pytest.mark.slow
def test_folders_may_have_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    connection = Connection()
    run_id = log_something(connection)
    assert connection.read_json(run_id, "a.json") == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert sorted(file.name for file in folder.iterdir()) == ["mlflow.db", "mlruns"]
    assert [file.read_text() for file in folder.rglob("a.json")] == ['{\n  "a": 1\n}']
    assert connection.uri == f"sqlite:///{folder}/mlflow.db"


@pytest.mark.parametrize("move", [shutil.move, shutil.copytree])
def test_a_moved_folder_holds_its_own_artifacts(
    move: Callable[[Path, Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    (tmp_path / "old").mkdir()
    monkeypatch.chdir(tmp_path / "old")
    run_id = log_something(Connection())
    monkeypatch.chdir(tmp_path)
    move(tmp_path / "old", tmp_path / "new place")
    monkeypatch.chdir(tmp_path / "new place")
    shutil.rmtree(tmp_path / "old", ignore_errors=True) if move is shutil.move else None
    connection = Connection(read_only=True)
    assert "was moved" in caplog.text
    assert connection.client.get_run(run_id).info.artifact_uri.startswith((tmp_path / "new place").as_uri())
    assert connection.read_json(run_id, "a.json") == {"a": 1}
    another = log_something(Connection())
    assert connection.read_json(another, "a.json") == {"a": 1}
    assert not (tmp_path / "old").exists() or not list((tmp_path / "old").rglob(another))
    assert caplog.text.count("was moved") == 1


@pytest.mark.slow
def test_artifacts_that_were_put_elsewhere_stay_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Connection()
    (tmp_path / "elsewhere/mlruns").mkdir(parents=True)
    with contextlib.closing(sqlite3.connect("mlflow.db")) as database, database:
        database.execute("update experiments set artifact_location = ?", (f"{tmp_path}/elsewhere/mlruns/7",))
    log_something(Connection())
    assert list((tmp_path / "elsewhere").rglob("a.json"))
    assert not (tmp_path / "mlruns").exists()


def _another_database(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("create table mine (a)")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.mkdir(), "is not a file"),
        (lambda file: file.write_text("no database" * 100), r"is not a database: move it away"),
        (_another_database, "is a database of something else"),
        (lambda file: file.symlink_to("/proc/version"), "cannot be"),
    ],
    ids=["folder", "text", "another", "unreadable"],
)
def test_what_is_no_database_is_named_at_once(
    spoil: Callable[[Path], object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spoil(tmp_path / "mlflow.db")
    with pytest.raises(TrackingError, match=rf"mlflow\.db: .*{message}.*set {VARIABLE} to another database") as caught:
        Connection()
    assert "unset" not in str(caught.value)
    monkeypatch.setenv(VARIABLE, f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(TrackingError, match=rf"^{VARIABLE}=sqlite.*{message}.*or unset {VARIABLE} to use mlflow.db"):
        Connection()


def _page_of(file: Path, name: str) -> int:
    """Where the first page of a table or an index begins in a database."""
    with contextlib.closing(sqlite3.connect(file)) as database:
        (size,) = database.execute("pragma page_size").fetchone()
        (page,) = database.execute("select rootpage from sqlite_master where name = ?", (name,)).fetchone()
    return int(size) * (page - 1)


@pytest.mark.parametrize("read_only", [True, False])
def test_a_page_that_was_lost_is_told_and_no_run_is_missing_without_a_word(
    read_only: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    log_something(Connection())
    file = tmp_path / "mlflow.db"
    whole = file.read_bytes()
    start = _page_of(file, "tags")
    file.write_bytes(whole[:start] + bytes(4096) + whole[start + 4096 :])
    with pytest.raises(TrackingError, match=r"mlflow\.db is damaged: move it away, or restore a copy"):
        Connection(read_only=read_only)


def test_an_index_that_leads_to_other_rows_is_told_where_runs_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    log_something(Connection())
    file = tmp_path / "mlflow.db"
    whole = bytearray(file.read_bytes())
    start = _page_of(file, "sqlite_autoindex_tags_1")
    key = whole.rindex(b"runName", start, start + 4096)
    whole[key] ^= 1
    file.write_bytes(whole)
    with pytest.raises(TrackingError, match=r"mlflow\.db is damaged"):
        Connection(read_only=True)


def test_a_locked_folder_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "sqlite:////proc/none/mlflow.db")
    with pytest.raises(TrackingError, match="/proc/none"):
        Connection()


def test_reading_creates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UsageError, match=rf"{tmp_path}/mlflow\.db: there is no such file; run this in the folder of the"
    ):
        Connection(read_only=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_deleted_experiment_can_be_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    connection = Connection()
    connection.client.delete_experiment(connection.experiment_id)
    with pytest.raises(TrackingError, match="was deleted; restore it: ") as caught:
        Connection()
    command = str(caught.value).partition("restore it: ")[2]
    python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, capture_output=True, env=os.environ | {"PATH": python})
    Connection()


def test_names_that_mlflow_refuses_are_not_the_fault_of_the_store(tracked: Path) -> None:
    connection = Connection()
    run_id = connection.client.create_run(connection.experiment_id).info.run_id
    with (
        pytest.raises(TrackingError, match="does not take a name or value; give the knob") as caught,
        connection.explained(),
    ):
        connection.client.log_param(run_id, "a\nb?", "1")
    assert "unset" not in str(caught.value)


def test_a_locale_without_characters_is_told(tracked: Path) -> None:
    connection = Connection()
    with pytest.raises(TrackingError, match="does not hold all characters; set PYTHONUTF8=1"), connection.explained():
        "é".encode("ascii")


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:gehe%40im@127.0.0.1:1/db",
        "http://me:gehe%40im@127.0.0.1:9",
        "mysql+nothing://me:gehe%40im@127.0.0.1:1/db",
        "postgresql://127.0.0.1:1/db?user=me&password=gehe%40im",
        "postgresql://me:gehe/im@127.0.0.1:1/db",
        "postgresql://me:a@gehe@127.0.0.1:1/db",
        "http://gehe%40im@127.0.0.1:9",
    ],
)
def test_a_password_is_never_shown(uri: str, monkeypatch: pytest.MonkeyPatch, caplog, capfd) -> None:
    monkeypatch.setenv(VARIABLE, uri)
    with pytest.raises(BitsweepError) as caught:
        Connection()
    seen = "".join(
        [str(caught.value), repr(caught.value.__cause__), caplog.text, *capfd.readouterr(), find_address().shown]
    )
    assert "127.0.0.1" in seen
    assert "gehe" not in seen


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda file: file.symlink_to("/nowhere")])
def test_what_is_where_a_lock_belongs_is_named(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITSWEEP_LOCK_FOLDER", str(tmp_path))
    Connection()
    (lock,) = private_folder().glob("database-*.lock")
    lock.unlink()
    make(lock)
    Path("mlflow.db").unlink()
    with pytest.raises(MachineError, match=rf"^{lock}: cannot be a lock \(it is not a plain file\); remove it, or set"):
        Connection()


def test_no_hard_links_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on exFAT and CIFS."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.chdir(tmp_path)
    log_something(Connection())


def test_what_a_killed_run_holds_does_not_hide_what_was_finished(
    tracked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection()
    ids = {}
    for status in ("FINISHED", "KILLED", "FAILED"):
        tags = {"kind": "baseline", "baseline_key": "k"}
        ids[status] = connection.client.create_run(connection.experiment_id, tags=tags).info.run_id
        connection.client.set_terminated(ids[status], status)
    assert connection.baselines()["k"].info.run_id == ids["FINISHED"]
    later = connection.client.create_run(connection.experiment_id, tags=tags, start_time=2**42).info.run_id
    connection.client.set_terminated(later, "FINISHED")
    assert connection.baselines()["k"].info.run_id == later
    for few in (0, 100):
        monkeypatch.setattr("bitsweep.tracking.connection._ONE_BY_ONE", few)
        asked = connection.baselines(["other", "k"])
        assert {key: run.info.run_id for key, run in asked.items()} == {"k": later}


@pytest.mark.parametrize(("given", "kept"), [(None, "true"), ("false", "false")])
def test_mlflow_does_not_tell_its_makers_unless_asked_to(
    given: str | None, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that does so changes the environment while requests read it, which then fail."""
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    if given:
        monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", given)
    quiet_mlflow()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == kept
