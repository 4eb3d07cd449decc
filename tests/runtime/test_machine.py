import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bitsweep.errors import MachineError
from bitsweep.runtime import machine


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where sweeps share a folder; gives that one."""
    monkeypatch.setenv(machine.VARIABLE, str(tmp_path))
    return tmp_path / f"bitsweep-{os.getuid()}"


def test_the_shared_folder_does_not_follow_the_one_of_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(machine.VARIABLE)
    usual = machine.private_folder()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert machine.private_folder() == usual


def test_many_may_work(scratch: Path) -> None:
    machine.check()
    with machine.working(quiet=False):
        machine.check()
    with machine.working(quiet=True):
        machine.check()
    assert scratch.stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_one_that_measures_is_alone(scratch: Path) -> None:
    """It says that it waits for long."""
    program = (
        "from bitsweep.runtime import machine\nmachine._SILENT_S = 0.2\n"
        "with machine.working(quiet=True): print('measured', flush=True)"
    )
    with machine.working(quiet=False):
        other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert other.stdout
        said = f"waiting until other work on this machine lets it measure ({scratch}/measuring.db)\n"
        assert other.stdout.readline() == said
    assert other.communicate()[0] == "measured\n"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda shared: shared.write_text("a file"),
        lambda shared: shared.symlink_to(shared.parent),
        lambda shared: (shared.mkdir(), shared.chmod(0o777)),
        lambda shared: (shared / "measuring.db").mkdir(parents=True),
        lambda shared: (shared.mkdir(0o700), (shared / "measuring.db").symlink_to("/etc/passwd")),
        lambda shared: (shared.mkdir(0o700), (shared / "measuring.db").write_text("no database" * 1000)),
    ],
    ids=["file", "link", "open to all", "folder in it", "link in it", "text in it"],
)
def test_what_is_in_the_way_is_named(spoil: Callable[[Path], object], scratch: Path) -> None:
    (scratch.parent / "other").mkdir()
    spoil(scratch)
    for use in (machine.check, machine.working(quiet=True).__enter__):
        with pytest.raises(
            MachineError, match=rf"{scratch}.*(remove it|remove what is there), or set BITSWEEP_LOCK_FOLDER"
        ):
            use()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_user_may_have_a_number_and_nothing_else(scratch: Path) -> None:
    mine = scratch.with_name("bitsweep-54321")
    mine.mkdir(0o700)
    os.chown(mine, 54321, -1)
    program = (
        "import os; os.setreuid(54321, 0)\n"
        "from bitsweep.runtime import machine; machine.check()\n"
        "import getpass, mlflow; print(getpass.getuser())"
    )
    environment = {"PATH": os.environ["PATH"], machine.VARIABLE: str(scratch.parent)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd="/", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "54321\n"), done.stderr
