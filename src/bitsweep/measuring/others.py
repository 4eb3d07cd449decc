"""How much other processes and the hypervisor use the cores meanwhile, as far as the system counts it."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from bitsweep.runtime.environment import usable_cpus

if TYPE_CHECKING:
    from bitsweep.config.protocol import MeasurementProtocol

#: Share of the time that an engine's threads compute where nothing keeps them from it, at least.
_LEAST_COMPUTING = 0.5
#: How often in a second the system takes a core away from a process that has it to itself, at most.
_MOST_PREEMPTIONS = 10.0


@dataclass
class Others:
    """How much others used this process's CPUs during the blocks that were watched.

    The system counts in steps of 10 ms. What is seen of a short block is rough and may be less than nothing, while the
    sum of many is right.
    """

    _seconds: float = 0.0
    _cpu_s: float = 0.0
    _busy_s: float = 0.0
    _computed_s: float = 0.0
    _preemptions: int = 0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Watch them during a block."""
        start, busy_s, computed_s, preemptions = time.monotonic(), _busy_s(), time.process_time(), _preemptions()
        yield
        seconds = time.monotonic() - start
        self._seconds += seconds
        self._cpu_s += seconds * len(usable_cpus())
        self._busy_s += _busy_s() - busy_s
        self._computed_s += time.process_time() - computed_s
        self._preemptions += _preemptions() - preemptions

    @property
    def share(self) -> float:
        """What they took of the time of the CPUs, in [0, 1].

        A neighbour that is busy all the time slows evenly, so that neither drift nor spread shows it; and it slows a
        network with more small kernels more than the other.
        """
        return min(1.0, max(0.0, (self._busy_s - self._computed_s) / self._cpu_s))

    @property
    def figures(self) -> dict[str, float]:
        """Their share, how many CPUs this process kept busy, and how often in a second a core was taken from it."""
        return {
            "foreign_share": self.share,
            "computing_share": self._computed_s / self._seconds,
            "preemptions_per_s": self._preemptions / self._seconds,
        }

    def crowd(self, protocol: "MeasurementProtocol", *, computes: bool) -> bool:
        """Whether the threads of this process wait for cores that others use.

        Args:
            computes: whether it is its own threads that compute, and not a GPU.
        """
        figures = self.figures
        waits = figures["preemptions_per_s"] > _MOST_PREEMPTIONS
        idle = computes and figures["computing_share"] < _LEAST_COMPUTING
        return self.share > protocol.max_foreign_share and (waits or idle)


def _preemptions() -> int:
    """How often the system has taken a core away from this process."""
    import resource  # which not every system has that can plan

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _busy_s() -> float:
    """Seconds that this process's CPUs have been busy, with any process."""
    times = psutil.cpu_times(percpu=True)
    idle = {"idle", "iowait", "guest", "guest_nice"}  # guests are in user time already
    return sum(sum(value for name, value in times[cpu]._asdict().items() if name not in idle) for cpu in usable_cpus())
