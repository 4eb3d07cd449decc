"""A folder belongs to one sweep, and one that ended before it wrote anything leaves none."""

from pathlib import Path

import pytest

from bitsweep.sweep_folder import free_folder, own_folder, remove_unused


def test_the_next_sweep_gets_a_folder_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = tmp_path / "multirun" / "out"
    assert free_folder(wanted) == wanted and not wanted.exists()
    assert own_folder(wanted) == wanted
    assert not capsys.readouterr().out
    assert free_folder(wanted) == wanted.with_name("out-2")
    assert own_folder(wanted) == wanted.with_name("out-2")
    assert own_folder(wanted) == wanted.with_name("out-3")
    assert f"{wanted} holds another sweep: this one is {wanted}-3\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "stays"),
    [("bitsweep.log", "", False), ("bitsweep.log", "a line", True), ("report.html", "", True), (".hydra", "", False)],
)
def test_what_was_written_to_stays(name: str, content: str, stays: bool, tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "out")
    (folder / name).write_text(content)
    remove_unused(folder)
    assert folder.exists() is stays


def test_there_need_be_no_folder(tmp_path: Path) -> None:
    remove_unused(tmp_path / "none")
    assert not (tmp_path / "none").exists()
