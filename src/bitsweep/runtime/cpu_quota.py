"""How much of the CPUs' time a process may use where a control group limits it, as in a container."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path


def cpu_quota(*, groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPUs' worth of time that this process may use in each period; None where nothing limits it.

    The least limit of the process's own control group and of all above it, of version 1 and 2.

    Args:
        groups: file that names the process's control groups.
        mounted: folder that they are mounted in.
    """
    limits = []
    with contextlib.suppress(OSError):
        for line in groups.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                limits += _limits(mounted, path, _of_version_2)
            elif "cpu" in controllers.split(","):
                # Inside a container the path may be the host's; its own limits are then those at the root.
                for name in dict.fromkeys((controllers, "cpu", "cpu,cpuacct")):
                    limits += _limits(mounted / name, path, _of_version_1)
    return min(limits, default=None)


def _limits(root: Path, path: str, read: Callable[[Path], float | None]) -> list[float]:
    folder = root / path.lstrip("/")
    folders = [folder, *folder.parents]
    return [limit for each in folders if each.is_relative_to(root) and (limit := read(each)) is not None]


def _of_version_2(folder: Path) -> float | None:
    with contextlib.suppress(OSError):
        if found := re.fullmatch(r"(\d+) (\d+)\s*", (folder / "cpu.max").read_text()):
            return int(found[1]) / int(found[2])
    return None


def _of_version_1(folder: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 and period > 0 else None
    return None
