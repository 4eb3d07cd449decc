"""Runs a function in a fresh process, so that a crash, a hang or a leak ends that process and nothing else.

Children are forked from a server that has the heavy packages imported and nothing started: a child begins within a
fraction of a second, with no thread pool of another engine in it.
"""

import contextlib
import errno
import functools
import math
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bitsweep.errors import BitsweepError, CellFailed, UsageError, ran_out_of_memory, ran_out_of_space
from bitsweep.runtime.containment import contain
from bitsweep.runtime.leftovers import hold_sockets
from bitsweep.runtime.progress import progress_bar

_PRELOAD = "bitsweep.runtime.preload"
#: Where children only draw the pictures of a report, they need none of the heavy packages.
FOR_PICTURES = "bitsweep.report.pictures"
#: Where they measure what is made already, none that compresses and lowers.
FOR_MEASURING = "bitsweep.runtime.preload_measuring"
_TEARDOWN_S = 10
#: One thread at a time hides the main module.
_MAIN_MODULE = threading.Lock()
#: Seconds in which the processes that work together are expected to see that one of them has failed.
_COMPANION_S = 1
_SIGNAL_MEANING = {
    "SIGSEGV": "segmentation fault",
    "SIGABRT": "aborted",
    "SIGBUS": "bus error",
    "SIGFPE": "arithmetic error",
    "SIGILL": "illegal instruction",
    "SIGKILL": "out of memory, or killed from outside",
    "SIGTERM": "terminated from outside",
}


def warm_up(preload: str = _PRELOAD) -> None:
    """Start the server now, so that its imports overlap with other work.

    Args:
        preload: module that it imports: all packages that a stage may use, ``FOR_MEASURING``, or ``FOR_PICTURES``.
    """
    _context(preload)


def _context(preload: str = _PRELOAD) -> multiprocessing.context.ForkServerContext:
    # Children start by the default of their parent, which joblib's workers set to a method that it alone knows.
    if multiprocessing.get_start_method(allow_none=True) not in (None, *multiprocessing.get_all_start_methods()):
        multiprocessing.set_start_method("forkserver", force=True)
    context = multiprocessing.get_context("forkserver")
    # What the parent has imported of this package is what its children need of it.
    own = sorted(name for name in sys.modules if name.partition(".")[0] == "bitsweep")
    context.set_forkserver_preload([preload, *own])  # says nothing to a server that runs already
    hold_sockets()
    # Ctrl-C reaches all processes of a terminal; while the server imports, it would answer with a traceback.
    multiprocessing.resource_tracker.ensure_running()  # which would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def call_until_done(call: Callable[[], None], goes_on: Callable[[str], bool]) -> None:
    """Let one process after the other do a work, as long as one is lost and another can go on behind that.

    Args:
        call: starts a process, and waits for it.
        goes_on: whether another one can, from why one was lost.

    Raises:
        CellFailed: a process was lost, and no other can go on.
    """
    while True:
        try:
            return call()
        except CellFailed as error:
            if not goes_on(str(error)):
                raise


def call(
    function: Callable[..., None],
    arguments: Mapping[str, Any] = MappingProxyType({}),
    *,
    folder: Path,
    log: Path,
    timeout_s: float = 0,
    memory_gb: float = 0,
    processes: int = 1,
) -> None:
    """Call ``function(**arguments, folder=folder, progress=progress)`` in a fresh process and wait, without spinning.

    Args:
        function: module-level function; what it prints goes to the log, ``progress`` shows a bar on the terminal.
        folder: where it writes its results.
        log: file that its standard output and error are appended to.
        timeout_s: seconds it may take; 0 for any.
        memory_gb: how far its data may grow, in 10^9 bytes; 0 for any.
        processes: how many call it together; where it is more than one, each gives its number as ``rank``, and all end
            when one fails.

    Raises:
        CellFailed: it crashed, was killed, ran out of memory or time, or raised an unexpected error.
        BitsweepError: it raised one itself.
        OSError: the disk is full.
    """
    ranks, what = range(processes) if processes > 1 else [None], function.__name__.replace("_", " ")
    try:
        children = [_Child.start(function, dict(arguments), folder, log, memory_gb, rank) for rank in ranks]
    except (EOFError, ConnectionError) as error:
        raise CellFailed(f"{what} was not started: this job was ended from outside, or is out of memory") from error
    end = time.monotonic() + timeout_s if timeout_s else math.inf
    failures: list[BaseException] = []
    try:
        waiting = children
        while waiting and not failures:
            answered = _answered(waiting, end - time.monotonic())
            if not answered:
                raise CellFailed(f"{what} took longer than timeout_s={timeout_s:g} and was stopped")
            waiting = [child for child in waiting if child not in answered]
            failures = [failure for child in answered if (failure := child.failure(what))]
        # Those that lose a companion fail too, a little later or sooner, and know less of why.
        if failures and waiting:
            failures += [failure for child in _answered(waiting, _COMPANION_S) if (failure := child.failure(what))]
    finally:
        for child in children:
            child.end()
    if failures:
        failure = min(failures, key=lambda failure: not isinstance(failure, _Ended))
        raise _no_space() if isinstance(failure, _Ended) and ran_out_of_space(failure, folder) else failure


class _Ended(CellFailed):
    """The process ended without an answer."""


@dataclass(frozen=True, eq=False)
class _Child:
    process: multiprocessing.context.ForkServerProcess
    receiver: Connection
    lifeline: Connection

    @classmethod
    def start(cls, *asked: Any) -> "_Child":
        context = _context()
        receiver, sender = context.Pipe(duplex=False)
        end, lifeline = context.Pipe(duplex=False)
        process = context.Process(target=_main, args=(sender, end, *asked), daemon=False)
        with contextlib.nullcontext() if b"__main__" in pickle.dumps(asked) else _hidden_main_module():
            process.start()
        sender.close()
        end.close()
        return cls(process, receiver, lifeline)

    def failure(self, what: str) -> BaseException | None:
        """The error that a process answered with, or that it did not answer; None if all went well."""
        answer = None
        with contextlib.suppress(EOFError, OSError):
            answer = self.receiver.recv()
        # Engines may crash or hang while they are torn down, after all results are on disk: that is no failure.
        self.process.join(_TEARDOWN_S)
        if answer is None:
            return _Ended(f"{what} {_describe_exit(self.process.exitcode or 0)}")
        return answer if isinstance(answer, BaseException) else None

    def end(self) -> None:
        """End what is left of it, with all that it has started."""
        self.lifeline.close()
        self.process.join(_TEARDOWN_S)
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.join()
        self.receiver.close()


@contextlib.contextmanager
def _hidden_main_module() -> Iterator[None]:
    """Let children not import the file that was started: they need nothing of it, and it may start cells at once."""
    main = sys.modules["__main__"]
    with _MAIN_MODULE:
        names: dict[str, Any] = vars(main)
        hidden: dict[str, Any] = {name: names.pop(name) for name in ("__file__", "__spec__") if name in names}
        names["__spec__"] = None
        try:
            yield
        finally:
            names.update(hidden)


def _answered(children: list[_Child], timeout_s: float) -> list[_Child]:
    """Those that have answered or ended, once there are any, or that time is over."""
    handles = [handle for child in children for handle in (child.receiver, child.process.sentinel)]
    ready = wait(handles, None if math.isinf(timeout_s) else max(0, timeout_s))
    return [child for child in children if child.receiver in ready or child.process.sentinel in ready]


def _describe_exit(exitcode: int) -> str:
    if exitcode >= 0:
        return f"ended the process with exit code {exitcode} before it was done"
    number = -exitcode
    name = signal.Signals(number).name if number in signal.Signals.__members__.values() else f"signal {number}"
    meaning = _SIGNAL_MEANING.get(name, "")
    return f"was killed by {name}" + (f" ({meaning})" if meaning else "")


def _main(
    sender: Connection,
    lifeline: Connection,
    function: Callable[..., None],
    arguments: dict[str, Any],
    folder: Path,
    log: Path,
    memory_gb: float,
    rank: int | None,
) -> None:
    terminal = os.fdopen(os.dup(2), "w", buffering=1)
    progress = functools.partial(progress_bar, None if rank else terminal)
    contain(log, lifeline, sender)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if memory_gb:
        import resource  # not everywhere, and needed nowhere else

        limit = int(memory_gb * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    answer: BaseException | str = "done"
    numbered = {} if rank is None else {"rank": rank}
    try:
        function(**arguments, folder=folder, progress=progress, **numbered)
    except BaseException as error:  # also those of a plug-in that exits or interrupts itself
        answer = error
        if not isinstance(error, BitsweepError):
            traceback.print_exc()
            answer = _explain(error, function.__name__.replace("_", " "), folder)
        elif type(error).__module__ != BitsweepError.__module__:  # the parent need not know the class
            answer = (UsageError if isinstance(error, UsageError) else CellFailed)(str(error))
    sys.stdout.flush()
    sys.stderr.flush()
    sender.send(answer)
    sender.close()


def _explain(error: BaseException, what: str, folder: Path) -> BaseException:
    """The error as the parent should see it; the traceback is in the log."""
    if ran_out_of_space(error, folder):
        return _no_space()
    if ran_out_of_memory(error):
        return CellFailed(f"{what} ran out of memory")
    said = [type(error).__name__, *str(error).strip().splitlines()[:1]]
    return CellFailed(f"{what} failed: {': '.join(said)}"[:500])


def _no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
