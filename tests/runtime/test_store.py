import functools
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bitsweep.errors import StoreError
from bitsweep.runtime import integrity
from bitsweep.runtime.store import MANIFEST, Store
from tests.processes import wait_until

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


def test_where_locks_do_not_hold_the_first_result_counts(tmp_path: Path) -> None:
    """Two machines that share a folder build the same: the second to end takes what the first has built."""
    store, other = Store(tmp_path / "shared"), Store(tmp_path / "other")
    left = tmp_path / "shared" / "kind"
    for host in (socket.gethostname(), "another"):
        (left / f"k.{host}.123.partial").mkdir(parents=True)
    with store.building("kind", "k", about=ABOUT) as folder:
        assert folder and folder.name == f"k.{socket.gethostname()}.{os.getpid()}.partial"
        (folder / "data.bin").write_bytes(b"second")
        build(other, content=b"first").rename(store.folder("kind", "k"))
    found = store.find("kind", "k")
    assert found and (found / "data.bin").read_bytes() == b"first"
    assert {path.name for path in left.glob("*.partial")} == {"k.another.123.partial"}
    (found / "data.bin").write_bytes(b"spoilt")
    assert (build(store) / "data.bin").read_bytes() == b"x" * 5000


LARGE = bytes(range(256)) * 20_000


def overwrite(file: Path, place: int, *, times: bool = False) -> None:
    """Change one byte in the middle of a file, perhaps with the times of before."""
    about = file.stat()
    with file.open("r+b") as stream:
        stream.seek(place)
        stream.write(b"!")
    if times:
        os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "data.bin").write_bytes(LARGE[:-1]),
        lambda folder: overwrite(folder / "data.bin", 0),
        lambda folder: overwrite(folder / "data.bin", len(LARGE) // 2),
        lambda folder: overwrite(folder / "data.bin", len(LARGE) // 2, times=True),
        lambda folder: (folder / "data.bin").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").write_text("{}"),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: (folder / "manifest.json").write_text("[" * 100_000),
        lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"),
        lambda folder: (folder / "manifest.json").write_text(
            (folder / "manifest.json").read_text().replace('"seconds": ', '"seconds": 9')
        ),
        lambda folder: ((folder / "manifest.json").unlink(), (folder / "manifest.json").mkdir()),
        lambda folder: (shutil.rmtree(folder), folder.write_text("a file")),
        lambda folder: (shutil.rmtree(folder), folder.symlink_to(folder.parent)),
    ],
)
def test_a_damaged_folder_is_built_again_with_a_warning(tmp_path: Path, damage, caplog) -> None:
    store = Store(tmp_path)
    assert build(store, content=LARGE) == store.find("kind", "k")
    with caplog.at_level(logging.WARNING):
        damage(store.folder("kind", "k"))
        found = store.find("kind", "k")
    assert found is None
    assert "built again" in caplog.text or not (store.folder("kind", "k") / "manifest.json").exists()
    assert (build(store, content=LARGE) / "data.bin").read_bytes() == LARGE
    assert store.find("kind", "k")


def test_hashes_are_computed_again_only_where_a_file_was_touched(tmp_path: Path, monkeypatch) -> None:
    store, hashed = Store(tmp_path), []
    folder = build(store, content=LARGE)
    monkeypatch.setattr(
        integrity, "_sha256", lambda file: hashed.append(file.name) or hashlib.sha256(LARGE).hexdigest()
    )
    assert store.find("kind", "k")
    assert not hashed
    (folder / "data.bin").touch()
    assert store.find("kind", "k")
    assert store.find("kind", "k")
    assert hashed == ["data.bin"]


@pytest.mark.parametrize(
    "junk", [b"", b"{}", b"[1]", b'{"data.bin": 1}', b'{"data.bin": [[1], 2]}', b"\xff", b"[" * 100_000]
)
def test_what_is_remembered_may_be_lost(junk: bytes, tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = build(store)
    folder.with_suffix(".seen").write_bytes(junk)
    assert store.find("kind", "k") == folder
    overwrite(folder / "data.bin", 100)
    folder.with_suffix(".seen").write_bytes(junk)
    assert store.find("kind", "k") is None


@pytest.mark.parametrize(
    ("mode", "owner", "refused"),
    [(0o755, 0, False), (0o775, 0, False), (0o777, 0, True), (0o755, 7, False), (0o775, 7, True), (0o777, 7, True)],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give folders away")
@pytest.mark.parametrize("name", ["store", "store/artifact"])
def test_a_store_that_others_may_write_is_refused(
    name: str, mode: int, owner: int, refused: bool, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    build(store)
    (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / name).chmod(mode)
    os.chown(tmp_path / name, owner, owner)
    if refused:
        with pytest.raises(
            StoreError, match=r"others may write .*; take the right away \(chmod -R go-w .*store.folder=/another/"
        ):
            store.check()
    else:
        store.check()


def test_no_umask_opens_a_store_to_others(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = Store(tmp_path / "store")
        store.check()
        build(store)
        store.check()
    finally:
        os.umask(before)
    assert not any(folder.stat().st_mode & 0o022 for folder in tmp_path.rglob("*") if folder.is_dir())
    assert not any(file.stat().st_mode & 0o022 for file in (tmp_path / "store" / "artifact").rglob("*"))


@pytest.mark.parametrize("name", ["", MANIFEST, ".seen"])
def test_neither_a_finished_folder_nor_what_vouches_for_it_may_be_written_by_others(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    folder = build(store)
    opened = folder.with_suffix(name) if name == ".seen" else folder / name
    opened.chmod(0o777)
    with pytest.raises(StoreError, match=f"others may write {opened}, .*chmod -R go-w {store.root}"):
        store.check()


def test_it_stays_where_it_was_when_the_working_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(Path("store"))
    build(store)
    monkeypatch.chdir("/")
    assert store.find("kind", "k") == tmp_path / "store/kind/k"


def _build_slowly(root: Path, log: Path, seconds: float) -> None:
    with Store(root).building("kind", "k", about=ABOUT) as folder:
        if folder:
            with log.open("a") as lines:
                lines.write("built\n")
            (folder / "half").write_text("half")
            time.sleep(seconds)


def test_two_processes_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    workers = [context.Process(target=_build_slowly, args=(tmp_path / "store", log, 0.5)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert log.read_text() == "built\n"


def test_a_killed_builder_leaves_no_half_folder_and_no_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    worker = context.Process(target=_build_slowly, args=(tmp_path / "store", log, 600))
    worker.start()
    wait_until(log.exists)
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


@pytest.mark.parametrize(
    "junk",
    [
        b"3",
        b"null",
        b'[["a"], {}, 1]',
        b'["kind", 1]',
        b'["kind", 1, "x"]',
        b'["kind", 1, NaN]',
        b"\xff\x00",
        b"[" * 9999,
    ],
)
def test_lines_that_are_no_durations_are_left_out(junk: bytes, tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "durations.jsonl").write_bytes(junk + b"\n" + json.dumps(["kind", ABOUT, 3.0]).encode() + b"\n" + junk)
    assert store.estimate("kind", ABOUT) == 3.0


def test_durations_may_be_missing_altogether(tmp_path: Path) -> None:
    (tmp_path / "durations.jsonl").mkdir()
    store = Store(tmp_path)
    assert store.estimate("kind", ABOUT) is None
    assert build(store) == store.find("kind", "k")


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"store.folder=.*file/store: cannot be written .*choose a folder"):
        Store(tmp_path / "file" / "store").check()


def test_a_store_that_can_be_made_is_only_tried(tmp_path: Path) -> None:
    Store(tmp_path / "a" / "store").require_folder()
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    for place, why in ((tmp_path / "file" / "store", "file is a file; name a folder"), (Path("/proc/x"), "choose")):
        with pytest.raises(StoreError, match=rf"^store\.folder={place}: .*{why}"):
            Store(place).require_folder()


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with (
        pytest.raises(StoreError, match="is full; free some space"),
        Store(tmp_path).building("kind", "k", about=ABOUT) as folder,
    ):
        assert folder
        with Path("/dev/full").open("wb") as full:
            full.write(b"x")


def test_what_another_store_finished_is_taken_whole_or_not_at_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs, ours = Store(tmp_path / "theirs"), Store(tmp_path / "ours")
    with theirs.building("baseline", "key", about={}, rests_on=[("dataset", "d")]) as folder:
        assert folder
        (folder / "net").mkdir()
        (folder / "net" / "weights.pt").write_bytes(b"weights")

    def bring(folder: Path, changed: str = "") -> None:
        shutil.copytree(theirs.folder("baseline", "key"), folder, dirs_exist_ok=True)
        if changed:
            (folder / changed).write_bytes(b"others")

    for changed in ("net/weights.pt", "manifest.json"):
        assert ours.take("baseline", "key", functools.partial(bring, changed=changed)) is None
        assert "is damaged" in caplog.text
        assert not list((tmp_path / "ours" / "baseline").iterdir())
    taken = ours.take("baseline", "key", bring)
    assert taken == ours.find("baseline", "key")
    assert taken and (taken / "net" / "weights.pt").read_bytes() == b"weights"
    assert ours.seconds("baseline", "key") == theirs.seconds("baseline", "key")

    def never(folder: Path) -> None:
        raise AssertionError("it is there")

    assert ours.take("baseline", "key", never) == taken


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda file: file.symlink_to("/nowhere")])
def test_what_is_where_a_lock_belongs_is_named(make: Callable[[Path], None], tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.holding("artifact", "k"):
        pass
    (lock,) = (tmp_path / "locks").iterdir()
    lock.unlink()
    make(lock)
    with (
        pytest.raises(StoreError, match=rf"\({lock}: it is not a plain file; remove it\)"),
        store.holding("artifact", "k"),
    ):
        pass


def test_what_is_damaged_is_told_once_until_it_is_built_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path)
    for told in (1, 2):
        with store.building("baseline", "key", about={}) as folder:
            assert folder
            (folder / "weights.pt").write_bytes(b"weights")
        assert store.find("baseline", "key")
        (store.folder("baseline", "key") / "weights.pt").write_bytes(b"others!")
        assert [store.find("baseline", "key") for _ in range(3)] == [None] * 3
        assert caplog.text.count("is damaged") == told
