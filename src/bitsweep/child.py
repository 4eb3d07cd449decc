"""Runs a function in a fresh process, so that a crash, a hang or a leak ends that process and nothing else.

Children are forked from a server that has the heavy packages imported and nothing started: a child begins within a
fraction of a second, with no thread pool of another engine in it.
"""

import contextlib
import errno
import multiprocessing
import multiprocessing.forkserver
import os
import resource
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TextIO

from bitsweep.errors import BitsweepError, CellFailed, ran_out_of_memory

_TEARDOWN_S = 10
_SIGNAL_MEANING = {
    signal.SIGSEGV: "segmentation fault",
    signal.SIGABRT: "aborted",
    signal.SIGBUS: "bus error",
    signal.SIGFPE: "arithmetic error",
    signal.SIGILL: "illegal instruction",
    signal.SIGKILL: "out of memory, or killed from outside",
    signal.SIGTERM: "terminated from outside",
}


def warm_up() -> None:
    """Start the server now, so that its imports overlap with other work."""
    _context()
    multiprocessing.forkserver.ensure_running()


def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bitsweep.preload"])
    return context


def call(
    function: Callable[..., None], *args: Any, folder: Path, log: Path, timeout_s: float = 0, memory_gb: float = 0
) -> None:
    """Call ``function(*args, folder=folder, progress=terminal)`` in a fresh process and wait for it, without spinning.

    Args:
        function: module-level function; what it prints goes to the log, ``progress`` is the terminal (or None).
        folder: where it writes its results.
        log: file that its standard output and error are appended to.
        timeout_s: seconds it may take; 0 for any.
        memory_gb: how far its data may grow, in 10^9 bytes; 0 for any.

    Raises:
        CellFailed: it crashed, was killed, ran out of memory or time, or raised an unexpected error.
        BitsweepError: it raised one itself.
        OSError: the disk is full.
    """
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_main, args=(sender, function, args, folder, log, memory_gb), daemon=False)
    process.start()
    sender.close()
    what = function.__name__.replace("_", " ")
    try:
        if not wait([receiver, process.sentinel], timeout=timeout_s or None):
            raise CellFailed(f"{what} took longer than timeout_s={timeout_s:g} and was stopped")
        answer = _receive(receiver)
        # Engines may crash or hang while they are torn down, after all results are on disk: that is no failure.
        process.join(_TEARDOWN_S)
    finally:
        _end(process)
        receiver.close()
    if answer is None:
        raise CellFailed(f"{what} {_describe_exit(process.exitcode or 0)}")
    if isinstance(answer, BaseException):
        raise answer


def _receive(receiver: Connection) -> Any:
    with contextlib.suppress(EOFError):
        return receiver.recv()
    return None


def _end(process: multiprocessing.context.ForkServerProcess) -> None:
    assert process.pid is not None
    # The child leads a process group, so that what it has started ends with it.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.join()


def _describe_exit(exitcode: int) -> str:
    if exitcode >= 0:
        return f"ended the process with exit code {exitcode} before it was done"
    number = -exitcode
    name = signal.Signals(number).name if number in signal.Signals.__members__.values() else f"signal {number}"
    meaning = _SIGNAL_MEANING.get(number, "")  # type: ignore[call-overload]
    return f"was killed by {name}" + (f" ({meaning})" if meaning else "")


def _main(
    sender: Connection, function: Callable[..., None], args: tuple[Any, ...], folder: Path, log: Path, memory_gb: float
) -> None:
    with contextlib.suppress(OSError):
        os.setsid()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    progress = _redirect(log)
    if memory_gb:
        limit = int(memory_gb * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    answer: BaseException | str = "done"
    try:
        function(*args, folder=folder, progress=progress)
    except BitsweepError as error:
        answer = error
    except Exception as error:
        traceback.print_exc()
        answer = _explain(error, function.__name__.replace("_", " "), folder)
    sys.stdout.flush()
    sys.stderr.flush()
    sender.send(answer)
    sender.close()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)


def _redirect(log: Path) -> TextIO | None:
    terminal = os.fdopen(os.dup(2), "w", buffering=1)
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    return terminal


def _explain(error: Exception, what: str, folder: Path) -> BaseException:
    """The error as the parent should see it; the traceback is in the log."""
    with contextlib.suppress(OSError):
        if shutil.disk_usage(folder).free < 1 << 20 or getattr(error, "errno", None) == errno.ENOSPC:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    text = str(error).strip()
    if ran_out_of_memory(error):
        return CellFailed(f"{what} ran out of memory")
    first_line = text.splitlines()[0] if text else ""
    return CellFailed(f"{what} failed: {type(error).__name__}: {first_line}"[:500])
