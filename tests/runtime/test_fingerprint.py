from pathlib import Path

import pytest

from bitsweep.runtime import fingerprint


def test_digest_is_stable_and_full_length() -> None:
    assert fingerprint.digest("a", {"x": 1, "y": 2}) == fingerprint.digest("a", {"y": 2, "x": 1})
    assert len(fingerprint.digest("a")) == 64
    assert fingerprint.digest("a", "b") != fingerprint.digest("ab")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of this package that imports another, in a folder of its own."""
    import bitsweep

    (tmp_path / "made_up.py").write_text('"""One."""\nfrom bitsweep import made_up_too\n\nx = 1\n')
    (tmp_path / "made_up_too.py").write_text("y = 2\n")
    monkeypatch.setattr(bitsweep, "__path__", [*bitsweep.__path__, str(tmp_path)])
    return tmp_path


def _code() -> str:
    fingerprint.code.cache_clear()
    fingerprint._parsed.cache_clear()
    fingerprint._file.cache_clear()
    return fingerprint.code("bitsweep.made_up")


def test_code_changes_with_what_runs_and_not_with_its_looks(package: Path) -> None:
    before = _code()
    (package / "made_up.py").write_text('"""Two."""\nfrom bitsweep import made_up_too\n# a comment\nx   =   1\n')
    assert _code() == before
    (package / "made_up.py").write_text("from bitsweep import made_up_too\nx = 3\n")
    assert _code() != before


def test_code_changes_with_imported_modules(package: Path) -> None:
    before = _code()
    (package / "made_up_too.py").write_text("y = 3\n")
    assert _code() != before
