"""Image files in one folder a class: what is there, and what its contents are, without decoding any.

Names are relative to the root, so that a tree is the same wherever it lies.
"""

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from bitsweep.errors import DataError
from bitsweep.runtime.environment import physical_cores
from bitsweep.runtime.user_cache import read_cached, write_cached
from bitsweep.text import counted, say, some

_TRAIN = ("train", "train_set", "training", "training_set")
_TEST = ("test", "test_set", "testing", "val", "valid", "validation", "validation_set")
_IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
#: What file managers, archivers and network disks leave behind, in lower case, besides hidden files.
_LITTER = frozenset({
    "_ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle", "$recycle.bin", "__macosx", "icon\r",
    "lost+found", "picasa.ini", "system volume information", "zbthumbnail.info",
})  # fmt: skip
_DIGEST_BYTES = 32
_LONG_S = 5.0
_AT_ONCE = 64


def find_parts(root: Path, *, train: str = "", test: str = "") -> tuple[str, str] | tuple[()]:
    """Names of the folders of training and test images; none where the root holds the classes themselves.

    The first is empty where there are test images alone.

    Args:
        train, test: names to use; empty to find the usual ones, in any case of letters.

    Raises:
        DataError: one is missing, or there is a choice.
    """
    holders = {entry.name.lower(): entry.name for entry in _entries(root) if entry.is_dir() and _folders(Path(entry))}
    chosen: list[str] = []
    for key, given, usual in (("train_folder", train, _TRAIN), ("test_folder", test, _TEST)):
        if given and not (root / given).is_dir():
            raise DataError(f"dataset.{key}={given}: no such folder in {root}; choose from {some(holders.values())}")
        found = [given] if given else [holders[name] for name in usual if name in holders]
        if len(found) > 1:
            raise DataError(f"{root} has {' and '.join(found)}; choose one with dataset.{key}={found[0]}")
        chosen += found or [""]
    parts = [name for name in chosen if name]
    if parts and (litter := sorted(_litter(root))):
        say(f"left out in {root}: {some(litter)}, which are no images of yours")
    if parts and (beside := sorted(set(holders.values()) - set(parts))):
        say(f"left out: {some(beside)} in {root}; validation images are held out from {parts[0]}")
    if chosen[0] and not chosen[1]:
        raise DataError(
            f"{root} has {parts[0]}, and no other folder of a usual name; name both with dataset.train_folder and "
            f"dataset.test_folder, or set dataset.root={root / parts[0]} to split that"
        )
    return (chosen[0], chosen[1]) if parts else ()


def find_classes(root: Path, part: str = "", *, single: bool = False) -> dict[str, list[str]]:
    """Class -> names of its files, both in alphabetical order; a folder that is alone in another is entered.

    Args:
        single: whether there may be one class alone.

    Raises:
        DataError: there are less than two classes otherwise; one is empty, has folders, or what is no file; images lie
            beside the classes.
    """
    folder = root / part
    while len(only := _entries(folder)) == 1 and _folders(folder) and _folders(folder / only[0].name):
        folder /= only[0].name
    entries = _entries(folder)
    loose = [entry.name for entry in entries if not entry.is_dir() and entry.name.lower().endswith(_IMAGES)]
    if loose:
        raise DataError(f"{folder} holds images beside its folders ({some(loose)}); put each into that of its class")
    classes = {entry.name: _entries(Path(entry)) for entry in entries if entry.is_dir()}
    if len(classes) < 2 - single:
        raise DataError(
            f"{folder} holds {counted(len(classes), 'folder')}; there must be two or more, each with the images of a "
            "class: set dataset.root to the folder that holds them"
        )
    for name, files in classes.items():
        if not files:
            raise DataError(f"{folder / name} is empty; put the images of that class there, or delete it")
        if strange := [file.name for file in files if not file.is_dir() and file_kind(Path(file))]:
            raise DataError(
                f"{folder / name} holds {some(strange)}, which is {file_kind(folder / name / strange[0])} and no file; "
                "delete it"
            )
        if inside := [file.name for file in files if file.is_dir()]:
            raise DataError(
                f"{folder / name} holds folders ({some(inside)}), where only the images of a class may be: move them, "
                "or set dataset.root to the folder that holds the classes"
            )
    if litter := sorted({name for place in (folder, *(folder / name for name in classes)) for name in _litter(place)}):
        say(f"left out below {folder}: {some(litter)}, which are no images of yours")
    return {name: [file.path.removeprefix(f"{root}{os.sep}") for file in files] for name, files in classes.items()}


def find_pictures(folder: Path) -> list[str]:
    """Paths below a folder of all images in it, by the endings of their names, in alphabetical order."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name.lower() not in _LITTER]
        below = Path(place).relative_to(folder)
        found += [str(below / name) for name in files if name.lower().endswith(_IMAGES) and not name.startswith(".")]
    return sorted(found)


def is_picture(file: Path) -> bool:
    """Whether a file is one by the ending of its name, or by its content."""
    if file.name.lower().endswith(_IMAGES):
        return True
    try:
        Image.open(file).close()
    except UnidentifiedImageError:
        return False
    return True


def content_digests(root: Path, names: Sequence[str]) -> list[bytes]:
    """SHA-256 of every file.

    Where that takes long, the result is kept in the user's cache for the next time that no file has changed, as told
    by inode, size and time of change.
    """

    def compute() -> Iterator[bytes]:
        with ThreadPoolExecutor(physical_cores()) as pool:
            blocks = (names[start : start + _AT_ONCE] for start in range(0, len(names), _AT_ONCE))
            for block in pool.map(partial(_digests, root), blocks):
                yield from block

    return kept_digests([root / name for name in names], len(names), compute)


def kept_digests(files: Sequence[Path], count: int, compute: Callable[[], Iterable[bytes]]) -> list[bytes]:
    """Digests of so many images in files: those that were computed when the files were the same, or computed now."""
    state = hashlib.sha256()
    for file in files:
        about = file.stat()
        state.update(
            os.fsencode(f"\0{file.absolute()}\0{about.st_dev} {about.st_ino} {about.st_size} {about.st_ctime_ns}")
        )
    name = f"{state.hexdigest()}.sha256"
    content = read_cached(name)
    if content is not None and len(content) == _DIGEST_BYTES * count:
        return [content[start : start + _DIGEST_BYTES] for start in range(0, len(content), _DIGEST_BYTES)]
    start_s = time.monotonic()
    digests = list(compute())
    if time.monotonic() - start_s > _LONG_S:
        write_cached(name, b"".join(digests))
    return digests


def _digests(root: Path, names: Sequence[str]) -> list[bytes]:
    digests = []
    for name in names:
        with (root / name).open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").digest())
    return digests


def file_kind(path: Path) -> str:
    """What a path is that could hang who opens it; empty for files, folders, and where nothing is."""
    try:
        mode = path.stat().st_mode
    except OSError:  # a link to nowhere, for instance: opening it tells
        return ""
    kinds = {"a pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK, "a device": stat.S_ISCHR, "a disk": stat.S_ISBLK}
    return next((kind for kind, is_kind in kinds.items() if is_kind(mode)), "")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in _LITTER]
    return sorted(visible, key=lambda entry: entry.name)


def _litter(folder: Path) -> list[str]:
    """What is passed over in a folder, hidden files apart."""
    return [entry.name for entry in folder.iterdir() if entry.name.lower() in _LITTER]


def _folders(folder: Path) -> bool:
    """Whether a folder holds folders."""
    return any(entry.is_dir() for entry in _entries(folder))
