"""Latencies that rest on the memory: weights that do not fit the last cache are read from it anew in every run.

How long that takes depends on what all else leaves of the cache and of the memory, other virtual machines included. It
is the same from block to block of one process, and another one a minute later, so that blocks say nothing of it.
"""

import math
from pathlib import Path

from bitsweep import stats
from bitsweep.config.backend import Backend
from bitsweep.measuring.passes import stored_bytes

#: Bytes that cores read from memory in a millisecond, about: who reads weights faster has them in a cache.
_READ_BYTES_PER_MS = 20e6
#: Standard deviation of the logarithm of a speed-up from process to process, where one of two programs does nothing but
#: read weights that do not fit: 5 to 8 % for ResNet-18 at 32 pixels and AlexNet, by
#: `benchmarks/repeated_measurements.py` on an AMD EPYC with 32 MB of last cache.
_BETWEEN_READERS = 0.07
#: A share of the time above which it is worth telling.
TOLD = 0.3


def share_from_memory(size: float, ms: float, *, cache: int) -> float:
    """Share of a run in which weights are read that do not fit the last cache, from 0 to 1.

    Args:
        size: bytes of the program's files.
        ms: time of the run.
        cache: bytes of the last cache, of which others have half; 0 where it is not known.
    """
    return min(1.0, size / ms / _READ_BYTES_PER_MS) if cache and size > cache / 2 else 0.0


def share_of(artifact: Path, backend: Backend, ms: float, *, cache: int) -> float:
    """The same of an artifact, whose files are the program; 0 on a GPU, which has a memory of its own."""
    return share_from_memory(stored_bytes(artifact, backend), ms, cache=0 if backend.on_gpu else cache)


def between_processes(*shares: float) -> float:
    """Standard deviation of the logarithm of the ratio of two latencies from process to process, from their shares."""
    return math.hypot(stats.BETWEEN_PROCESSES, _BETWEEN_READERS * max(shares))
