"""What tests of processes share: none may rely on how fast a machine is on which others compute, too."""

import time
from collections.abc import Callable

import psutil
import pytest


def runs(pid: int) -> bool:
    """Whether the process is there and is more than an exit status that nobody has read."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(holds: Callable[[], object], *, seconds: float = 120) -> None:
    """Wait until something holds, far longer than it takes anywhere."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds:g} s"
        time.sleep(0.005)


def require_once(holds: Callable[[], bool], *, times: int = 10) -> None:
    """Require what a quiet machine shows. Others only add to what is seen, so that once is enough."""
    if any(holds() for _ in range(times)):
        return
    if psutil.cpu_percent(0.3) > 10:
        pytest.skip("something else computes on this machine all the time")
    raise AssertionError(f"not seen in {times} tries")
