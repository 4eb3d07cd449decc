"""Files that are made one by one, in processes that crash."""

import ctypes
import functools
import os
from pathlib import Path

import pytest

from bitsweep.errors import CellFailed, StoreError
from bitsweep.runtime import child
from bitsweep.runtime.file_by_file import load_evidence, make_files, note_lost


def write(path: Path) -> None:
    path.write_text("all of it")


def fail(path: Path) -> None:
    path.write_text("half of")
    raise ValueError("a picture\nthat cannot be drawn")


def crash(path: Path) -> None:
    path.write_text("half of")
    ctypes.string_at(0)


def make(*, names: str, folder: Path, progress: object) -> None:
    """Files whose names say what becomes of them."""
    made = {"w": write, "f": fail, "c": crash}
    make_files({name: made[Path(name).name[0]] for name in names.split()}, folder)


def made_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_fails_or_crashes_takes_nothing_with_it(tmp_path: Path) -> None:
    call = functools.partial(child.call, make, {"names": "w1 a/w2 f1 c1 b/w3 b/c2 w4"}, folder=tmp_path)
    lost = 0
    while True:
        try:
            call(log=tmp_path / "log.txt")
        except CellFailed as error:
            assert note_lost(tmp_path, str(error))
            lost += 1
        else:
            break
    assert lost == 2
    evidence = load_evidence(tmp_path)
    assert evidence.missing == {
        "f1": "ValueError: a picture",
        "c1": "make was killed by SIGSEGV (segmentation fault)",
        "b/c2": "make was killed by SIGSEGV (segmentation fault)",
    }
    assert evidence.folder is not None
    assert made_in(evidence.folder) == {"w1", "a/w2", "b/w3", "w4"}
    assert "f1 is missing (ValueError: a picture); c1 is missing" in str(evidence)
    assert "that cannot be drawn" in (tmp_path / "log.txt").read_text()


def test_a_process_that_made_nothing_is_not_followed_by_another(tmp_path: Path) -> None:
    make_files({"w": write}, tmp_path)
    assert not note_lost(tmp_path, "it was killed")
    assert load_evidence(tmp_path).missing == {}


def test_a_full_disk_is_no_missing_file(tmp_path: Path) -> None:
    def fill(path: Path) -> None:
        with Path("/dev/full").open("w") as full:
            full.write("x")

    with pytest.raises(OSError, match=os.strerror(28)):
        make_files({"w": write, "full": fill}, tmp_path)


def test_damage_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "missing.json").write_text("{")
    with pytest.raises(StoreError, match="delete its folder and run again"):
        load_evidence(tmp_path)
