import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bitsweep.errors import CellFailed, DataError, UsageError
from bitsweep.runtime import child
from bitsweep.runtime.containment import LOG_BYTES, tail
from tests.processes import runs, wait_until


def _call(function: Any, tmp_path: Path, **limits: float) -> None:
    child.call(function, folder=tmp_path, log=tmp_path / "log.txt", **limits)


def write_pid(*, folder: Path, progress: object) -> None:
    print("hello from the child")
    (folder / "pid").write_text(str(os.getpid()))


def report_gpus(*, folder: Path, progress: object) -> None:
    import torch

    assert not torch.cuda._is_in_bad_fork()
    (folder / "gpus").write_text(str(torch.cuda.is_available()))


def crash(*, folder: Path, progress: object) -> None:
    ctypes.string_at(0)


def leave(*, folder: Path, progress: object) -> None:
    os._exit(7)


def kill_itself(*, folder: Path, progress: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep_long(*, folder: Path, progress: object) -> None:
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (folder / "pids").write_text(f"{os.getpid()} {grandchild.pid}")
    time.sleep(60)


def hoard(*, folder: Path, progress: object) -> None:
    bytearray(8_000_000_000)


def hoard_tensors(*, folder: Path, progress: object) -> None:
    import torch

    torch.ones(2_000_000_000)


def raise_data_error(*, folder: Path, progress: object) -> None:
    raise DataError("the images are gone")


def raise_value_error(*, folder: Path, progress: object) -> None:
    raise ValueError("something odd\nwith a second line")


def fill_the_disk(*, folder: Path, progress: object) -> None:
    Path("/dev/full").write_bytes(b"x")


def start_daemons(*, folder: Path, progress: object) -> None:
    """Start processes that leave their session and parent, one by another program and one without, and crash."""
    start = "subprocess.Popen(['sleep', '60'], start_new_session=True, stdout=subprocess.DEVNULL).pid"
    program = [sys.executable, "-c", f"import subprocess; print({start})"]
    started = subprocess.run(program, stdout=subprocess.PIPE, text=True).stdout
    output, printed = os.pipe()
    if not os.fork():
        os.setsid()
        if not os.fork():
            os.write(printed, str(os.getpid()).encode())
            time.sleep(60)
        os._exit(0)
    (folder / "pids").write_text(f"{started} {os.read(output, 100).decode()}")
    ctypes.string_at(0)


def print_without_end(*, folder: Path, progress: object) -> None:
    for line in range(300_000):
        print(line, "x" * 100)
    print("y" * 3_000_000)
    print("the end")


def exit_early(*, folder: Path, progress: object) -> None:
    sys.exit(3)


def interrupt(*, folder: Path, progress: object) -> None:
    raise KeyboardInterrupt


class OwnError(DataError):
    """As a plug-in may have one, which nobody else knows."""


def raise_own_error(*, folder: Path, progress: object) -> None:
    raise OwnError("rows: none given")


def test_what_left_its_session_ends_with_it(tmp_path: Path) -> None:
    with pytest.raises(CellFailed, match="SIGSEGV"):
        _call(start_daemons, tmp_path)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    assert not any(runs(pid) for pid in pids)


@pytest.mark.slow
def test_a_log_has_an_end(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    for _ in range(2):
        _call(print_without_end, tmp_path)
        assert log.read_bytes().startswith(b"0 xxx")
        assert " bytes left out ...\n" in log.read_text()
        assert tail(log).endswith("\nthe end")
        assert len(tail(log)) < 20_000
    assert log.stat().st_size < LOG_BYTES + 1_000_000


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        (exit_early, CellFailed, "exit early failed: SystemExit: 3$"),
        (interrupt, CellFailed, "interrupt failed: KeyboardInterrupt$"),
        (raise_own_error, UsageError, "rows: none given$"),
    ],
)
def test_whatever_is_raised_is_named(function: Any, kind: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=message):
        _call(function, tmp_path)


def test_it_may_use_a_gpu(tmp_path: Path) -> None:
    """PyTorch forbids it where the process that was forked has asked the driver for GPUs, also if there was none."""
    import torch

    _call(report_gpus, tmp_path)
    assert (tmp_path / "gpus").read_text() == str(torch.cuda.is_available())


def test_it_runs_elsewhere_and_its_output_is_logged(tmp_path: Path) -> None:
    _call(write_pid, tmp_path)
    assert int((tmp_path / "pid").read_text()) != os.getpid()
    assert "hello from the child" in (tmp_path / "log.txt").read_text()


def test_a_crash_without_room_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: used._replace(free=4096))
    with pytest.raises(OSError, match="No space left"):
        _call(crash, tmp_path)


@pytest.mark.parametrize(
    ("function", "limits", "message"),
    [
        (crash, {}, r"crash was killed by SIGSEGV \(segmentation fault\)"),
        (leave, {}, "leave ended the process with exit code 7 before it was done"),
        (kill_itself, {}, "kill itself was killed by SIGKILL"),
        (sleep_long, {"timeout_s": 1.0}, "sleep long took longer than timeout_s=1 and was stopped"),
        (hoard, {"memory_gb": 2.0}, "hoard ran out of memory"),
        (hoard_tensors, {"memory_gb": 4.0}, "hoard tensors ran out of memory"),
        (raise_value_error, {}, "raise value error failed: ValueError: something odd$"),
    ],
)
def test_how_it_ended_is_named(function: Any, limits: dict[str, float], message: str, tmp_path: Path) -> None:
    with pytest.raises(CellFailed, match=message):
        _call(function, tmp_path, **limits)


@pytest.mark.slow
def test_what_it_started_ends_with_it(tmp_path: Path) -> None:
    for timeout_s in (2.0, 10.0, 50.0):  # on a busy machine it may not even have started after the first
        with pytest.raises(CellFailed):
            _call(sleep_long, tmp_path, timeout_s=timeout_s)
        if (tmp_path / "pids").exists():
            break
    assert not any(runs(int(pid)) for pid in (tmp_path / "pids").read_text().split())


def test_errors_for_the_user_arrive_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the images are gone"):
        _call(raise_data_error, tmp_path)
    with pytest.raises(OSError, match="No space left"):
        _call(fill_the_disk, tmp_path)


def test_a_traceback_is_in_the_log(tmp_path: Path) -> None:
    with pytest.raises(CellFailed):
        _call(raise_value_error, tmp_path)
    assert "Traceback" in (tmp_path / "log.txt").read_text()


@pytest.mark.slow
def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from tests.runtime import test_child as t\n"
        "if __name__ == '__main__': t._call(t.sleep_long, Path(sys.argv[1]))"
    )
    script = tmp_path / "parent.py"
    script.write_text(program)
    parent = subprocess.Popen([sys.executable, script, tmp_path, Path(__file__).parents[2]])
    wait_until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text())
    parent.kill()
    parent.wait()
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    wait_until(lambda: not any(runs(pid) for pid in pids), seconds=50)  # they would end by themselves after 60


def test_an_interrupt_while_its_server_imports_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "slow_of_mine.py").write_text(f"import time; open(r'{tmp_path}/begun', 'w'); time.sleep(1)")
    program = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from bitsweep.runtime import child
child.warm_up("slow_of_mine")
try:
    print("up", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)
"""
    command = [sys.executable, "-c", program]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": tmp_path}
    with subprocess.Popen(command, text=True, start_new_session=True, **options) as parent:  # type: ignore[call-overload]
        assert parent.stdout.readline() == "up\n"
        wait_until((tmp_path / "begun").exists)
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.communicate(timeout=60)[1] == ""


def test_a_server_that_ends_while_it_is_asked(tmp_path: Path) -> None:
    """As in a job that its cluster cancels."""
    program = """
import gc, os, signal, threading
from multiprocessing import forkserver
from pathlib import Path
from bitsweep.errors import CellFailed
from bitsweep.runtime import child
child.warm_up("json")
server = forkserver._forkserver._forkserver_pid
os.kill(server, signal.SIGSTOP)
threading.Timer(0.5, os.kill, (server, signal.SIGKILL)).start()
try:
    child.call(gc.collect, folder=Path(), log=Path("log"))
except CellFailed as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=tmp_path).stdout
    assert said == "collect was not started: this job was ended from outside, or is out of memory\n"
