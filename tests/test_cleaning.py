"""What is freed of a store, and what is never."""

import contextlib
import shutil
from pathlib import Path

import pytest

from bitsweep.cleaning import clean
from bitsweep.config.requirement import NOTHING
from bitsweep.errors import UsageError
from bitsweep.runtime.store import Store
from bitsweep.runtime.store_contents import contents
from bitsweep.tracking.connection import Connection
from bitsweep.tracking.entries import Entry
from bitsweep.tracking.sweep_logger import SweepLogger


def build(store: Store, kind: str, key: str, *rests_on: tuple[str, str]) -> None:
    with store.building(kind, key, about={}, rests_on=rests_on) as folder:
        assert folder
        (folder / "data").write_bytes(b"x" * 1000)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a finished cell and a finished baseline, made once: that takes seconds."""
    folder = tmp_path_factory.mktemp("database")
    with contextlib.chdir(folder):
        connection = Connection()
        for kind, tag, key in (("cell", "cell_key", "kept"), ("baseline", "baseline_key", "trained")):
            run = connection.client.create_run(connection.experiment_id, tags={"kind": kind, tag: key})
            connection.client.set_terminated(run.info.run_id, "FINISHED")
    return folder / "mlflow.db"


@pytest.fixture
def store(workplace: Path, database: Path) -> Store:
    """Two measurements on one data set, of which one is that of a finished cell; and what is left of others."""
    shutil.copy(database, workplace)
    store = Store(Path("multirun/store"))
    build(store, "dataset", "d")
    for name in ("kept", "lost"):
        build(store, "compressed", f"{name}-c", ("dataset", "d"))
        build(store, "measurement", name, ("compressed", f"{name}-c"), ("dataset", "d"))
        build(store, "evidence", f"{name}-e", ("measurement", name))
    build(store, "baseline", "trained", ("dataset", "d"))
    (store.root / "compressed" / "half.partial").mkdir()
    (store.root / "baseline" / "b.unfinished").write_text("a checkpoint")
    return store


def test_what_another_process_removed_meanwhile_is_gone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    build(store, "dataset", "d")
    (tmp_path / "baseline").mkdir()
    (tmp_path / "baseline" / "b.unfinished").write_text("a checkpoint")
    for item in contents(store):
        for _ in range(2):
            item.remove()
    assert not contents(store)


def names(store: Store) -> set[str]:
    return {item.name for item in contents(store)}


KEPT = {"d", "kept-c", "kept", "kept-e", "trained", "b.unfinished"}


def test_what_a_finished_cell_rests_on_is_kept(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(store)
    clean(store.root, kinds=(), delete=False, force=False)
    assert names(store) == before
    listed = capsys.readouterr().out
    assert "compressed/lost-c  0.00 MB: no finished cell rests on it" in listed
    assert "compressed/half.partial  0.00 MB: left of a build that did not end" in listed
    clean(store.root, kinds=["evidence"], delete=True, force=False)
    assert names(store) == before - {"lost-e"}
    clean(store.root, kinds=(), delete=True, force=False)
    assert names(store) == KEPT
    assert store.find("measurement", "kept") and not store.find("measurement", "lost")
    clean(store.root, kinds=(), delete=True, force=True)
    assert not names(store)


def test_cells_of_another_database_are_kept(store: Store, monkeypatch: pytest.MonkeyPatch, database: Path) -> None:
    entry = Entry(cell={}, key="lost", baseline_key="", scheme="", command="", verdict="finished")
    connection = Connection()
    run_id = SweepLogger(connection, store).start("s", "command", [entry], (), require=NOTHING)
    with pytest.raises(UsageError, match="the sweep s is running"):
        clean(store.root, kinds=(), delete=True, force=False)
    connection.client.set_terminated(run_id)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    with pytest.raises(UsageError, match="there is no such file"):
        clean(store.root, kinds=(), delete=True, force=True)
    shutil.copy(database, "other.db")
    clean(store.root, kinds=(), delete=True, force=False)
    assert names(store) >= {"lost", "lost-c", "lost-e", "d"}


def test_nothing_goes_while_somebody_builds(store: Store) -> None:
    """Whatever database the sweep of that process writes to."""
    before = names(store)
    with (
        store.holding("compressed", "lost-c"),
        pytest.raises(UsageError, match="another process is at work in it: wait for its end"),
    ):
        clean(store.root, kinds=(), delete=True, force=False)
    assert names(store) == before
    clean(store.root, kinds=(), delete=True, force=False)
    assert names(store) == KEPT


def test_a_store_that_does_not_say_what_rests_on_what_is_kept(store: Store) -> None:
    for file in store.root.rglob("manifest.json"):
        file.write_text(file.read_text().replace('"rests_on"', '"before"'))
    clean(store.root, kinds=(), delete=True, force=False)
    assert names(store) >= {"lost", "lost-c", "lost-e", *KEPT}


def test_what_is_not_there_is_named(store: Store) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        clean(Path("elsewhere"), kinds=(), delete=True, force=False)
    with pytest.raises(UsageError, match="is a file"):
        clean(Path("mlflow.db"), kinds=(), delete=True, force=False)
    with pytest.raises(UsageError, match="--kind compresed: the store has none; it has baseline, compressed"):
        clean(store.root, kinds=["compresed"], delete=True, force=False)


def test_a_folder_that_is_no_store_is_left_alone(tmp_path: Path) -> None:
    kept = tmp_path / "photos" / "holiday"
    kept.mkdir(parents=True)
    with pytest.raises(UsageError, match="is no store"):
        clean(tmp_path, kinds=[], delete=True, force=True)
    assert kept.is_dir()
