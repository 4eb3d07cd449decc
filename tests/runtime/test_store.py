import json
import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from bitsweep.errors import StoreError
from bitsweep.runtime.store import Store

ABOUT = {"model": "m", "dataset": "d"}


def build(store: Store, key: str = "k", content: bytes = b"x" * 5000) -> Path:
    with store.building("kind", key, about=ABOUT) as folder:
        if folder:
            (folder / "data.bin").write_bytes(content)
    return store.folder("kind", key)


def test_what_is_built_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find("kind", "k") is None
    assert store.find("kind", "k") is None
    assert build(store) == store.find("kind", "k")
    assert store.seconds("kind", "k") >= 0


def test_a_failure_publishes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(RuntimeError), store.building("kind", "k", about=ABOUT) as folder:
        assert folder
        (folder / "half").write_text("half")
        raise RuntimeError
    assert store.find("kind", "k") is None
    assert not list((tmp_path / "kind").iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(b"y" + file.read_bytes()[1:]),
        lambda file: file.unlink(),
        lambda file: (file.parent / "manifest.json").write_text("{"),
    ],
    ids=["truncated", "overwritten", "missing", "manifest"],
)
def test_a_damaged_folder_is_built_again_with_a_warning(tmp_path: Path, damage, caplog) -> None:
    store = Store(tmp_path)
    damage(build(store) / "data.bin")
    with caplog.at_level(logging.WARNING):
        assert store.find("kind", "k") is None
    assert "built again" in caplog.text
    assert (build(store) / "data.bin").read_bytes() == b"x" * 5000
    assert store.find("kind", "k")


def _build_slowly(root: Path, log: Path) -> None:
    with Store(root).building("kind", "k", about=ABOUT) as folder:
        if folder:
            with log.open("a") as lines:
                lines.write("built\n")
            (folder / "half").write_text("half")
            time.sleep(0.5)


def test_two_processes_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    workers = [context.Process(target=_build_slowly, args=(tmp_path / "store", log)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert log.read_text() == "built\n"


def test_a_killed_builder_leaves_no_half_folder_and_no_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    worker = context.Process(target=_build_slowly, args=(tmp_path / "store", log))
    worker.start()
    while not log.exists():
        time.sleep(0.01)
    assert worker.pid
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    store = Store(tmp_path / "store")
    assert store.find("kind", "k") is None
    assert (build(store) / "data.bin").exists()
    assert not (store.folder("kind", "k") / "half").exists()


def test_estimates_are_medians_of_alike_work(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.estimate("kind", ABOUT) is None
    lines = [["kind", ABOUT, 1.0], ["kind", ABOUT, 3.0], ["kind", ABOUT, 2.0], ["kind", {"model": "other"}, 50.0]]
    (tmp_path / "durations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "torn")
    assert store.estimate("kind", ABOUT) == 2.0
    assert store.estimate("kind", {"model": "new"}) == 2.5


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"store=.*file/store: cannot be written .*choose a folder"):
        Store(tmp_path / "file" / "store").check()


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with (
        pytest.raises(StoreError, match="is full; free some space"),
        Store(tmp_path).building("kind", "k", about=ABOUT) as folder,
    ):
        assert folder
        with Path("/dev/full").open("wb") as full:
            full.write(b"x")
