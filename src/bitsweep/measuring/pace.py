"""How fast the cores are at the moment, compared with their best.

On a shared computer two things change without any counter of the system showing it. The two hardware threads of a core
share its arithmetic units, and the second may belong to another virtual machine. And virtual CPUs move between physical
cores, so that two of them may share a cache or be far apart; the threads of a small network then wait for each other.
"""

import contextlib
import json
import math
import mmap
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from bitsweep.runtime.environment import current_cpu, usable_cpus
from bitsweep.runtime.machine import private_folder
from bitsweep.runtime.plain_files import write_whole

#: Cores at most that are asked. More threads of Python would wait for each other, and not for the cores.
_CORES = 8
#: Calls of each kernel, of which the median counts.
_CALLS = 7
#: Round trips between two cores: as many in each series, of which the quickest counts.
_ROUND_TRIPS, _SERIES = 200, 3
#: Other cores at most to which messages go.
_PARTNERS = 3
#: How often a core looks for the other's answer before it gives up: about 20 ms.
_LOOKS = 500_000
#: An effect that counts for any larger one: a core that does not answer at all is infinitely far.
_LARGEST_EFFECT = 10.0
#: What is known of a machine counts for a day.
_KNOWN_FOR_S = 86_400.0
#: Places of the two messages, in cache lines of their own.
_THERE, _BACK, _READY = 0, 64, 128
#: Answers a core's messages from another core, until its input ends.
_PARTNER = f"""
import mmap, os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
shared = mmap.mmap(int(sys.argv[1]), {mmap.PAGESIZE})
while line := sys.stdin.readline():
    try:
        os.sched_setaffinity(0, {{int(line)}})
    except OSError:
        pass
    shared[{_BACK}] = 0
    shared[{_READY}] = 1
    for trip in range({_SERIES * _ROUND_TRIPS}):
        message = 1 + trip % 250
        for _ in range({_LOOKS}):
            if shared[{_THERE}] == message:
                break
        else:
            break
        shared[{_BACK}] = message
"""


class Moment(NamedTuple):
    """How the cores were between two measurements."""

    #: Times of arithmetic, and of a message from core to core, by the best of them: 1 or more.
    arithmetic: float
    distance: float
    #: Time of a fixed kernel, which shows the frequency of the cores.
    kernel_ms: float

    @property
    def slowdown(self) -> float:
        """The larger of the two."""
        return max(self.arithmetic, self.distance)

    @property
    def effect(self) -> float:
        """How much longer a program may take because of it, at most.

        One that passed messages for more than half of its time would be no faster than on one core.
        """
        return max(self.arithmetic, (1 + self.distance) / 2)


class Pace:
    """Says how much slower than at their best the cores are that this process may run on.

    Use it as a context manager, and call it between two measurements.
    """

    def __init__(self) -> None:
        self._cpus = usable_cpus()[:_CORES]
        self._best = _Best(f"{current_cpu().model} {self._cpus}")
        self._samples = np.ones(1 << 14, np.float32)
        self._taps = np.ones(64, np.float32)
        self._unsorted = np.random.default_rng(0).random(1 << 12)
        self._partner: _Partner | None = None

    def __enter__(self) -> Self:
        if len(self._cpus) > 1 and hasattr(os, "memfd_create"):
            with contextlib.suppress(OSError):  # no further process may be started
                self._partner = _Partner()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._partner:
            self._partner.close()
        self._best.keep()

    def __call__(self) -> Moment:
        """How the cores are now.

        A lower frequency is no slowdown: it slows everything alike, and a computer that is warm stays so.
        """
        kernels, round_trips = self._kernels(), self._round_trips()
        arithmetic = [1.0]
        for products_ms, sorting_ms in kernels:
            frequency = self._best.slowdown("sorting_ms", sorting_ms)
            arithmetic.append(self._best.slowdown("products_ms", products_ms) / frequency)
        distances = [1.0, *(self._best.slowdown(f"round_trip_{cpu}_ns", ns) for cpu, ns in round_trips.items())]
        kernel_ms = statistics.median(sorting_ms for _, sorting_ms in kernels)
        return Moment(arithmetic=max(arithmetic), distance=max(distances), kernel_ms=kernel_ms)

    def _kernels(self) -> Sequence[tuple[float, float]]:
        """On all cores at once: times of sums of products, which fill the arithmetic units, and of sorting, which waits
        for memory and branches and hardly needs them."""
        found: list[tuple[float, float]] = []
        together = threading.Barrier(len(self._cpus))

        def run(cpu: int) -> None:
            with _on(cpu):
                together.wait()
                products_ms = statistics.median(self._products_ms() for _ in range(_CALLS))
                sorting_ms = statistics.median(self._sorting_ms() for _ in range(_CALLS))
            found.append((products_ms, sorting_ms))

        # This thread itself stays where the system has put it: moved, it would meet the engine's threads on its core.
        helpers = [threading.Thread(target=run, args=(cpu,)) for cpu in self._cpus]
        for helper in helpers:
            helper.start()
        for helper in helpers:
            helper.join()
        return found

    def _round_trips(self) -> dict[int, float]:
        """Times in ns of messages between the first core and some others."""
        found: dict[int, float] = {}
        partner = self._partner
        if partner is None:
            return found
        first, *others = self._cpus

        def run() -> None:
            with _on(first):
                found.update({other: partner.round_trip_ns(other) for other in others[:_PARTNERS]})

        helper = threading.Thread(target=run)
        helper.start()
        helper.join()
        return found

    def _products_ms(self) -> float:
        start = time.perf_counter_ns()
        np.correlate(self._samples, self._taps)
        return (time.perf_counter_ns() - start) / 1e6

    def _sorting_ms(self) -> float:
        start = time.perf_counter_ns()
        np.sort(self._unsorted)
        return (time.perf_counter_ns() - start) / 1e6


class _Partner:
    """A process on another core, which answers messages in shared memory."""

    def __init__(self) -> None:
        file = os.memfd_create("pace")
        try:
            os.ftruncate(file, mmap.PAGESIZE)
            self._shared = mmap.mmap(file, mmap.PAGESIZE)
            command = [sys.executable, "-I", "-S", "-c", _PARTNER, str(file)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[file])
        finally:
            os.close(file)

    def round_trip_ns(self, cpu: int) -> float:
        """How long a message from here to another CPU and back takes; infinite if the other does not answer."""
        shared, best = self._shared, float("inf")
        assert self._process.stdin
        shared[_THERE] = shared[_READY] = 0
        try:
            self._process.stdin.write(b"%d\n" % cpu)
            self._process.stdin.flush()
        except BrokenPipeError:
            return best
        if not any(shared[_READY] for _ in range(_LOOKS)):
            return best
        for series in range(_SERIES):
            start = time.perf_counter_ns()
            for trip in range(series * _ROUND_TRIPS, (series + 1) * _ROUND_TRIPS):
                message = 1 + trip % 250
                shared[_THERE] = message
                for _ in range(_LOOKS):
                    if shared[_BACK] == message:
                        break
                else:
                    return best
            best = min(best, (time.perf_counter_ns() - start) / _ROUND_TRIPS)
        return best

    def close(self) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._shared.close()


class _Best:
    """The best times that the cores of a machine have been seen to reach, kept for its next measurements."""

    def __init__(self, cores: str) -> None:
        self._file = private_folder() / "pace.json"
        self._known: dict[str, Any] = {}
        self._since, self._times = time.time(), dict[str, float]()
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            self._known = dict(json.loads(self._file.read_text()))
            of_these = self._known[cores]
            if 0 <= self._since - of_these["since"] < _KNOWN_FOR_S:
                self._times = {str(name): float(value) for name, value in of_these["times"].items()}
                self._since = of_these["since"]
        self._known[cores] = {"since": self._since, "times": self._times}

    def slowdown(self, name: str, value: float) -> float:
        """A time by the best of its kind, which it may be itself; 1 or more."""
        if math.isinf(value):
            return value
        best = self._times[name] = min(self._times.get(name, value), value)
        return value / best

    def keep(self) -> None:
        """Write it down; a machine that has no room for it is asked again next time."""
        with contextlib.suppress(OSError):
            write_whole(self._file, json.dumps(self._known))


@contextlib.contextmanager
def _on(cpu: int) -> Iterator[None]:
    """Let this thread run on one CPU, where the system can and may do so."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def steady(turns: Sequence[Sequence[Moment]], limit: float) -> list[int]:
    """Turns in which the cores were at no moment slower than their best by more than a limit."""
    return [number for number, turn in enumerate(turns) if max(moment.slowdown for moment in turn) <= 1 + limit]


def typical_effect(turns: Sequence[Sequence[Moment]]) -> float:
    """How much longer a program may have taken than on cores at their best, in the median of all moments; 1 or more."""
    return min(_LARGEST_EFFECT, statistics.median(moment.effect for turn in turns for moment in turn))


def drift(turns: Sequence[Sequence[Moment]]) -> float:
    """Relative change of the fixed kernel's time from the first half of some turns to the second; 0 of a single one."""
    times = [moment.kernel_ms for turn in turns for moment in turn]
    half = len(times) // 2
    return statistics.median(times[half:]) / statistics.median(times[:half]) - 1 if half else 0.0
