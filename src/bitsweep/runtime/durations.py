"""How long work took, kept in a file of lines, and how long alike work will take by that."""

import contextlib
import functools
import json
import math
import statistics
from pathlib import Path
from typing import Any


def remember(file: Path, kind: str, about: dict[str, str], seconds: float) -> None:
    """Add how long work took, where there is room for it.

    Args:
        about: what tells alike work.
    """
    with contextlib.suppress(OSError), file.open("a") as lines:
        lines.write(json.dumps([kind, about, round(seconds, 3)]) + "\n")


def estimate(file: Path, kind: str, about: dict[str, str]) -> float | None:
    """Median seconds of alike work, or else of any work of that kind; None where there was none."""
    past = _history(file, file.stat().st_mtime_ns).get(kind, []) if file.is_file() else []
    alike = [seconds for what, seconds in past if what == about] or [seconds for _, seconds in past]
    return statistics.median(alike) if alike else None


@functools.cache
def _history(file: Path, changed_ns: int) -> dict[str, list[tuple[Any, float]]]:
    """Kind -> what was done and how long it took, from a file as it was at a time; torn lines are left out."""
    history: dict[str, list[tuple[Any, float]]] = {}
    for line in file.read_bytes().splitlines():
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            kind, about, seconds = json.loads(line)
            if 0 <= seconds < math.inf:
                history.setdefault(str(kind), []).append((about, float(seconds)))
    return history
