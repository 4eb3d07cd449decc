"""Content hashes: of settings, and of the code that makes something from them.

Two things have the same key exactly when the same code would make them from the same inputs and settings.
"""

import contextlib
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from bitsweep.errors import ConfigError
from bitsweep.runtime import code_cache
from bitsweep.runtime.code_used import CodeUsed, Stamp, outermost, stamp
from bitsweep.runtime.module_files import PYTHON, is_absent, whereabouts

_codes: dict[tuple[Any, ...], tuple[str, dict[Path, Stamp]]] = {}
#: What was compared with its files since `files_seen_once` was entered; None outside.
_compared: set[tuple[Any, ...]] | None = None


def digest(*parts: Any) -> str:
    """SHA-256, as 64 hex digits, of JSON-serialisable parts."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def settings(configured: Any) -> dict[str, Any]:
    """Class and knobs of a configured object, as JSON types."""
    kind = type(configured)
    return {"class": f"{kind.__module__}.{kind.__qualname__}", **dataclasses.asdict(configured)}


def code(function: Callable[..., Any], *handed: type) -> str:
    """Hash of the code that a function runs: source of this package and of the user's files, and versions of all else.

    Args:
        handed: the classes of its arguments.

    Raises:
        ConfigError: one of them is in no file.
    """
    return code_of(function.__module__, outermost(function), *handed)


def code_of(module: str, name: str, *handed: type) -> str:
    """The same for what has a name at the top of a module, which need not have been imported."""
    asked = module, name, handed, tuple(sys.path)
    if _compared is not None and asked in _compared:
        return _codes[asked][0]
    known = _codes.get(asked)
    # A file that has changed meanwhile counts as it is now: that is what a process that is started now runs.
    if known is None or any(stamp(file) != then for file, then in known[1].items()):
        known = _codes[asked] = _found(module, name, handed)
    if _compared is not None:
        _compared.add(asked)
    return known[0]


@contextlib.contextmanager
def files_seen_once() -> Iterator[None]:
    """Within, code whose hash was asked for is not compared with its files again: many hashes are of one moment."""
    global _compared
    outer, _compared = _compared, set() if _compared is None else _compared
    try:
        yield
    finally:
        _compared = outer


def _found(module: str, name: str, handed: tuple[type, ...]) -> tuple[str, dict[Path, Stamp]]:
    for kind in handed:
        if is_absent(kind.__module__):
            shown = kind.__qualname__
            raise ConfigError(
                f"_target_={kind.__module__}.{shown}: it is in no file, and the processes that run cells import it "
                f"from one; move it to a file mine.py, and write _target_=mine.{shown}"
            )
    kept_as = _kept_as(module, name, handed)
    known = code_cache.find(kept_as)
    if known is None:
        used = CodeUsed(module, name, *handed)
        known = digest(used.found()), used.files
        code_cache.keep(kept_as, known[0], used)
    return known


def _kept_as(module: str, name: str, handed: Iterable[type]) -> str:
    """What the hash of some code is kept under: copies of a package at other places have theirs beside it."""
    kinds = [
        [
            [(each.__module__, outermost(each)) for each in kind.__mro__],
            [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else None,
        ]
        for kind in handed
    ]
    modules = (__name__, module, *(kind.__module__ for kind in handed))
    tops = sorted({each.partition(".")[0] for each in modules})
    return digest(PYTHON, module, name, kinds, [whereabouts(top) for top in tops])
