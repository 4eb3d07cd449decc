"""What a race leaves behind."""

from pathlib import Path

import pytest

from bitsweep import final_race
from bitsweep.runtime import machine


def test_what_a_killed_race_left_goes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(machine.VARIABLE, str(tmp_path))
    killed = machine.private_folder() / "race-killed"
    killed.mkdir()
    (killed / "samples.npy").write_bytes(b"...")
    other = machine.private_folder() / "measuring.db"
    other.write_bytes(b"")
    with final_race._scratch() as scratch:
        assert scratch.is_dir()
        assert not killed.exists()
    assert not scratch.exists() and other.exists()
