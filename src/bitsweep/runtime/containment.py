"""A process with all that it starts, as one thing that ends: what is left of it is killed, whatever became of it.

The process that does the work is the child of one that only waits. On Linux orphans become children of the one that
waits, so that it finds what has left the session, too. It also copies the output into a log of limited size.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

#: Bytes that a log may have; what is left out then is counted, and the end is kept.
LOG_BYTES = 16_000_000
_END_BYTES = 64_000
#: Seconds after which what cannot be killed is left to the system.
_PATIENCE_S = 10
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def contain(log: Path, lifeline: Connection, *held: Connection) -> None:
    """Return in a new process whose output goes to a log; in the present one wait for that one's end, and end likewise.

    Args:
        log: what is printed is appended.
        lifeline: when its other end closes, all that was started is killed.
        held: connections that only the new process keeps.
    """
    with contextlib.suppress(OSError):
        os.setsid()  # away from the terminal's signals
    output, printed = os.pipe()
    target = _opened(log)
    sys.stdout.flush()
    sys.stderr.flush()
    worker = os.fork()
    if not worker:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.setsid()
        lifeline.close()
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        for descriptor in (output, printed, target):
            os.close(descriptor)
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    os.close(printed)
    for connection in held:
        connection.close()
    writer = threading.Thread(target=_copy, args=(output, target), daemon=True)
    writer.start()
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    _, status = os.waitpid(worker, 0)
    _kill_descendants()
    writer.join(_PATIENCE_S)
    _end_like(os.waitstatus_to_exitcode(status))


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _opened(log: Path) -> int:
    """Descriptor of a log; of nothing where there is no room for one, since work must not end with its log."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    with contextlib.suppress(OSError):
        log.parent.mkdir(parents=True, exist_ok=True)
        return os.open(log, flags, 0o644)
    return os.open(os.devnull, flags)


def _end_with(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()
    _kill(_descendants())


def _descendants() -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [each for each in psutil.Process().children(recursive=True) if each.is_running()]
    return []


def _kill(processes: list[psutil.Process]) -> None:
    for each in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()


def _kill_descendants() -> None:
    """Kill all descendants of this process, again and again until there are none, because they may be starting some."""
    end = time.monotonic() + _PATIENCE_S
    while (found := _descendants()) and time.monotonic() < end:
        _kill(found)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        time.sleep(0.005)


def _end_like(exitcode: int) -> None:
    if exitcode < 0:
        import resource  # not everywhere, where nothing is killed by signals

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-exitcode, signal.SIG_DFL)
        os.kill(os.getpid(), -exitcode)
    os._exit(exitcode)


def _copy(output: int, target: int) -> None:
    """Append to a log what comes through a pipe, until nobody can write there any more."""
    room = max(_END_BYTES, LOG_BYTES - os.fstat(target).st_size)
    left_out, end = 0, bytearray()
    while chunk := os.read(output, 65_536):
        with contextlib.suppress(OSError):  # a full disk: the pipe must go on being emptied
            os.write(target, chunk[:room])
        end += chunk[room:]
        room = max(0, room - len(chunk))
        if len(end) > 2 * _END_BYTES:
            left_out += len(end) - _END_BYTES
            del end[:-_END_BYTES]
    if end:
        with contextlib.suppress(OSError):
            os.write(target, b"\n... %d bytes left out ...\n" % left_out + end)


def tail(log: Path, *, lines: int = 30) -> str:
    """The last lines of a log, read from its end."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _END_BYTES))
        return "\n".join(line[:500] for line in file.read().decode(errors="replace").splitlines()[-lines:])
