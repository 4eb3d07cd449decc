"""What a process leaves in the temporary folder when it is killed is removed by the next one, and nothing else."""

import os
import signal
import subprocess
import sys
from pathlib import Path

HOLD = "import sys; from bitsweep.runtime.leftovers import hold_sockets; hold_sockets()"
SLEEP = "; import time; time.sleep(300)"


def _start(folder: Path, more: str = "", before: str = "") -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", f"{HOLD}{before}; print('held', flush=True){more}"]
    started = subprocess.Popen(words, env={**os.environ, "TMPDIR": str(folder)}, stdout=subprocess.PIPE, text=True)
    assert started.stdout and started.stdout.readline() == "held\n"
    started.stdout.close()
    return started


def test_sockets_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    others = tmp_path / "pymp-others"
    others.mkdir()
    killed, alive = _start(tmp_path, SLEEP), _start(tmp_path, SLEEP)
    both = set(tmp_path.glob("pymp-*")) - {others}
    assert len(both) == 2
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert set(tmp_path.glob("pymp-*")) - {others} == both
    ended = _start(tmp_path)  # removes what is left of the first one, and its own when it ends
    ended.wait()
    (left,) = set(tmp_path.glob("pymp-*")) - {others}
    assert left in both and others.exists()
    alive.send_signal(signal.SIGKILL)
    alive.wait()
    _start(tmp_path).wait()
    assert list(tmp_path.glob("pymp-*")) == [others]


def test_a_child_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """multiprocessing tells a process that it starts the folder of the one that starts it."""
    child = "; from multiprocessing import get_context; child = get_context('spawn').Process(target=hold_sockets)"
    parent = _start(tmp_path, SLEEP, before=f"{child}; child.start(); child.join()")
    (own,) = tmp_path.glob("pymp-*")
    _start(tmp_path).wait()
    assert list(tmp_path.glob("pymp-*")) == [own]
    parent.kill()
    parent.wait()
