"""What a process leaves in the temporary folder when it is killed is removed by the next one, and nothing else."""

import os
import signal
import subprocess
import sys
from pathlib import Path

HOLD = "import sys; from bitsweep.runtime.leftovers import hold_sockets; hold_sockets(); print('held', flush=True)"


def _start(folder: Path, more: str = "") -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", HOLD + more]
    started = subprocess.Popen(words, env={**os.environ, "TMPDIR": str(folder)}, stdout=subprocess.PIPE, text=True)
    assert started.stdout and started.stdout.readline() == "held\n"
    started.stdout.close()
    return started


def test_sockets_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    others = tmp_path / "pymp-others"
    others.mkdir()
    killed, alive = _start(tmp_path, "; import time; time.sleep(60)"), _start(tmp_path, "; import time; time.sleep(60)")
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
