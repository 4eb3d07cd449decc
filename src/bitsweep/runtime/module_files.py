"""Where a module lies, found without importing it, and whether its source or its version tells what it is.

A module is *source* if it belongs to this package, or to no installed distribution: the user's own files, and packages
that are installed in editable form.
"""

import functools
import importlib.metadata
import importlib.util
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES
from pathlib import Path

_PACKAGE = __name__.partition(".")[0]
_SUFFIXES = (*SOURCE_SUFFIXES, *EXTENSION_SUFFIXES)
_ABSENT = " is absent"
#: What stands for the standard library.
PYTHON = f"python {sys.version_info.major}.{sys.version_info.minor}"


def module_file(name: str) -> Path | None:
    """File of a source module; None if there is no such module."""
    top, *inner = name.split(".")
    for place in _places(top, tuple(sys.path)):
        if place.is_file():
            return None if inner else place
        stem = place.joinpath(*inner)
        for file in (stem / "__init__.py", *(stem.with_name(stem.name + suffix) for suffix in _SUFFIXES if inner)):
            if file.is_file():
                return file
    return None


def searched_folders(name: str) -> set[Path]:
    """The folders that there are on the way to where a source module is looked for."""
    top, *inner = name.split(".")
    found = set()
    for place in _places(top, tuple(sys.path)):
        wanted = place.joinpath(*inner)
        found |= {folder for folder in (wanted, *wanted.parents[: len(inner)]) if folder.is_dir()}
    return found


def whereabouts(top: str) -> list[str]:
    """Where a top-level module lies, and the version that it has; an empty one for source."""
    return [version_of_module(top) or "", *map(str, _places(top, tuple(sys.path)))]


def is_absent(name: str) -> bool:
    """Whether there is no such module, or no file of it: it may have been typed in."""
    version = version_of_module(name)
    return not module_file(name) if version is None else version.endswith(_ABSENT)


def version_of_module(name: str) -> str | None:
    """The distributions of a module with their versions, that of Python, or that it is absent; None for source."""
    top = name.partition(".")[0]
    return None if top == _PACKAGE else _version(top, tuple(sys.path)) or None


@functools.cache
def _version(top: str, path: tuple[str, ...]) -> str:
    places, standard = _places(top, path), Path(sysconfig.get_path("stdlib"))
    if top in sys.stdlib_module_names and all(standard in place.parents for place in places):
        return PYTHON
    if not places:
        return top + _ABSENT
    held = (each for each in _distributions(top, places) if _may_hold(each, places))
    return ", ".join(sorted({f"{each.name} {each.version}" for each in held}))


@functools.cache
def _places(top: str, path: tuple[str, ...]) -> tuple[Path, ...]:
    """File of a top-level module, or folders of a package; none where there is no such module, or no file of it."""
    if top == "__main__":
        file = getattr(sys.modules[top], "__file__", None)
        return (Path(file).resolve(),) if file else ()
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return ()
    if spec is None:
        return ()
    if spec.submodule_search_locations is not None:
        return tuple(map(Path, spec.submodule_search_locations))
    return (Path(spec.origin),) if spec.origin and spec.has_location else ()


def _distributions(top: str, places: Iterable[Path]) -> Iterator[importlib.metadata.Distribution]:
    """Distributions that may hold a top-level module: the one of that name comes first, and is nearly always it."""
    try:
        alike = importlib.metadata.distribution(top)
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        if top in _tops_of(alike) and _may_hold(alike, places):
            yield alike
            return
    yield from _holders(tuple(sorted({str(place.parent) for place in places}))).get(top, ())


@functools.cache
def _holders(path: tuple[str, ...]) -> dict[str, list[importlib.metadata.Distribution]]:
    """The distributions in some folders, by the top-level modules that they installed."""
    found: dict[str, list[importlib.metadata.Distribution]] = {}
    for distribution in importlib.metadata.distributions(path=list(path)):
        for top in _tops_of(distribution):
            found.setdefault(top, []).append(distribution)
    return found


def _tops_of(distribution: importlib.metadata.Distribution) -> set[str]:
    """First words of the paths that a distribution installed; none of its top-level modules is missing."""
    files = distribution.read_text("RECORD") or distribution.read_text("top_level.txt") or ""
    return set(re.findall(r"^\w+", files, re.MULTILINE))


def _may_hold(distribution: importlib.metadata.Distribution, places: Iterable[Path]) -> bool:
    """Whether a distribution installed modules where these lie; one in editable form leaves them where they are edited.

    Beside a package that is being developed setuptools leaves an .egg-info, which has no METADATA.
    """
    folder = Path(str(distribution.locate_file(""))).resolve()
    return all(folder in place.resolve().parents for place in places) and distribution.read_text("METADATA") is not None
