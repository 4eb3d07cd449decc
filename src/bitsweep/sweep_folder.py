"""The folder of a sweep, in which its report is written; its name is the sweep's id."""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path


def free_folder(wanted: Path) -> Path:
    """The folder that `own_folder` would create now."""
    return next(folder for folder in _places(wanted) if not (folder / ".sweep").exists())


def own_folder(wanted: Path) -> Path:
    """A folder that no other sweep has written to, created: the one that is wanted, or one beside it with a number."""
    for folder in _places(wanted):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            (folder / ".sweep").touch(exist_ok=False)
        except FileExistsError:
            continue
        if folder != wanted:
            print(f"{wanted} holds another sweep: this one is {folder}", flush=True)
        return folder
    raise AssertionError("numbers do not end")


def remove_unused(folder: Path) -> None:
    """Remove the folder of a sweep that ended before anything was written to it but what Hydra writes at its start."""
    found = list(folder.iterdir()) if folder.is_dir() else []
    if all(file.name in (".sweep", ".hydra") or (file.suffix == ".log" and not file.stat().st_size) for file in found):
        shutil.rmtree(folder, ignore_errors=True)


def _places(wanted: Path) -> Iterator[Path]:
    """The folder that is wanted, and those beside it, by their numbers."""
    yield wanted
    yield from (wanted.with_name(f"{wanted.name}-{number}") for number in itertools.count(2))
