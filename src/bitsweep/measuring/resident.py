"""How much memory a process has, as Linux tells it."""

from pathlib import Path

_STATUS = Path("/proc/self/status")


def resident_mb() -> float:
    """What this process has in memory now, in 10^6 bytes."""
    return _mb("VmRSS")


def peak_mb() -> float:
    """The most that it had since it started."""
    return _mb("VmHWM")


def _mb(field: str) -> float:
    lines = _STATUS.read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1e6
