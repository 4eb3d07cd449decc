"""Hashes of code that another process worked out count only while nothing has changed."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bitsweep.runtime import code_cache, code_used, fingerprint, module_files


@pytest.fixture(autouse=True)
def cache(user: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of caches, beside a user's files that nobody has changed for a minute."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    _settle(user)
    return home / "bitsweep" / "code"


def _settle(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        os.utime(path, ns=(time.time_ns() - 60 * 10**9,) * 2)


def _code(*, reads: bool = True) -> str:
    """What another process says, which has read nothing yet; one that must not read source fails."""
    fingerprint._codes.clear()
    for known in (module_files._places, module_files._version, module_files._holders):
        known.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        if not reads:
            patch.setattr(code_used, "read_module", None)
        return fingerprint.code_of("user_code", "work")


def test_another_process_reads_nothing(cache: Path) -> None:
    before = _code()
    assert _code(reads=False) == before
    assert len(list(cache.iterdir())) == 1


def _write(path: str, text: str) -> Callable[[Path], object]:
    return lambda user: (user / path).write_text(text)


@pytest.mark.parametrize(
    "change",
    [
        _write("user_helpers/constants.py", "TWO = 4\nTHREE = 3\n"),
        _write("user_helpers/constants/__init__.py", "TWO = 5\n"),
        _write("some_library-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-library\nVersion: 1.1\n"),
        _write("not_installed.py", "x = 1\n"),
        lambda user: (user / "user_helpers/offered.py").unlink(),
        lambda user: shutil.rmtree(user / "some_library"),
    ],
)
def test_what_changes_counts(change: Callable[[Path], object], user: Path) -> None:
    """Also where it has the size and the time of what was there before."""
    before = _code()
    (user / "user_helpers" / "constants").mkdir(exist_ok=True)
    change(user)
    _settle(user)
    after = _code()
    assert after != before
    assert _code(reads=False) == after


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"code": 1}', '{"code": 1, "files": [], "folders": 1}'])
def test_a_damaged_answer_does_not_count(text: str, cache: Path) -> None:
    before = _code()
    (kept,) = cache.iterdir()
    kept.write_text(text)
    assert _code() == before
    assert _code(reads=False) == before


def test_what_has_just_changed_is_not_kept(user: Path, cache: Path) -> None:
    (user / "user_helpers/constants.py").touch()
    assert _code() == _code()
    assert not cache.exists()


def test_without_a_folder_nothing_is_kept(cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    assert _code() == _code()


def test_the_oldest_answers_go(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_cache, "_KEPT", 4)
    cache.mkdir(parents=True)
    for number in range(4):
        (cache / f"{number}.json").touch()
        os.utime(cache / f"{number}.json", (number, number))
    _code()
    assert {"2.json", "3.json"} < {file.name for file in cache.iterdir()}
    assert len(list(cache.iterdir())) == 3
