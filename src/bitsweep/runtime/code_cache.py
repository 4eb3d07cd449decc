"""Hashes of code that other processes worked out, kept in the user's folder of caches.

To read all that some code uses takes about a second. So the answer is kept, with everything that it was read from:
files and folders with their times, sizes and numbers, and where the modules lie, with the versions of packages. It
counts only while all of that is as it was. What changed a moment ago is not kept: a second change may have the same
time.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from bitsweep.runtime.code_used import CodeUsed, Stamp, stamp
from bitsweep.runtime.module_files import whereabouts
from bitsweep.runtime.user_cache import read_cached, write_cached

#: Seconds that files must have been left alone.
_SETTLED = 2.0
#: Answers that are kept, at most.
_KEPT = 2000


def find(asked: str) -> tuple[str, dict[Path, Stamp]] | None:
    """The hash that was kept for what is asked, and the files that were read for it; None where there is none.

    Args:
        asked: what was hashed, as a hash.
    """
    try:
        said = json.loads(read_cached(_name(asked)) or b"")
        code, files = str(said["code"]), {Path(file): Stamp(then) for file, then in said["files"].items()}
        folders = {Path(folder): Stamp(then) for folder, then in said["folders"].items()}
        moved = any(whereabouts(top) != then for top, then in said["packages"].items())
    except (ValueError, KeyError, TypeError, AttributeError):  # not there, or damaged
        return None
    return None if moved or _changed(files) or _changed(folders) else (code, files)


def keep(asked: str, code: str, used: CodeUsed) -> None:
    """Keep a hash for other processes, where that can be done."""
    folders = {folder: stamp(folder) for folder in used.folders}
    latest_ns = max((then[0] for then in (*used.files.values(), *folders.values())), default=0)
    if not 0 <= latest_ns < time.time_ns() - 1e9 * _SETTLED or _changed(used.files):
        return
    said = {
        "code": code,
        "files": {str(file): then for file, then in used.files.items()},
        "folders": {str(folder): then for folder, then in folders.items()},
        "packages": {top: whereabouts(top) for top in used.packages},
    }
    write_cached(_name(asked), json.dumps(said).encode(), at_most=_KEPT)


def _name(asked: str) -> str:
    return f"code/{asked}.json"


def _changed(known: Mapping[Path, Stamp]) -> bool:
    return any(stamp(file) != then for file, then in known.items())
