"""Files that are made one by one: one that cannot be made takes no other with it, and is named with the reason."""

import json
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from bitsweep.errors import damaged, first_line, ran_out_of_space
from bitsweep.results import Evidence
from bitsweep.runtime.plain_files import write_whole

#: Writes one file.
Maker = Callable[[Path], None]

#: Folder of the files, and what is known of those that could not be made.
_FILES, _MISSING = "files", "missing.json"
#: What is written down of a file before it is made, and stays if its process ends meanwhile.
_LOST = "its process ended"


def make_files(makers: Mapping[str, Maker], folder: Path) -> None:
    """Make the files that are not there yet, each by what its name leads to.

    What fails is noted, and not tried again in this folder. So is the file that was being made where a process ended:
    calling this again goes on behind it.

    Raises:
        OSError: the disk is full.
    """
    missing = _read_missing(folder)
    for name in missing:
        (folder / _FILES / name).unlink(missing_ok=True)
    for name, make in makers.items():
        path = folder / _FILES / name
        if path.exists() or name in missing:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_missing(missing | {name: _LOST}, folder)
        try:
            make(path)
        except Exception as error:
            if ran_out_of_space(error, folder):
                raise
            traceback.print_exc()
            path.unlink(missing_ok=True)
            missing[name] = f"{type(error).__name__}: {first_line(error)}"
        _write_missing(missing, folder)


def note_lost(folder: Path, reason: str) -> bool:
    """Write down why a process ended while it made a file; False where it made none."""
    missing = _read_missing(folder)
    lost = [name for name, why in missing.items() if why == _LOST]
    _write_missing(missing | dict.fromkeys(lost, reason), folder)
    return bool(lost)


def load_evidence(folder: Path) -> Evidence:
    """The files of a finished folder, and what is missing."""
    return Evidence(folder=folder / _FILES, missing=_read_missing(folder))


def _write_missing(missing: Mapping[str, str], folder: Path) -> None:
    write_whole(folder / _MISSING, json.dumps(missing))


def _read_missing(folder: Path) -> dict[str, str]:
    file = folder / _MISSING
    try:
        return dict(json.loads(file.read_text())) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise damaged(file, error) from error
