"""What is in an artifact store, how much room it takes, and which of it rests on what."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from bitsweep.errors import StoreError
from bitsweep.runtime.store import MANIFEST, Store

#: Folders of a store that hold no results.
_APART = ("jobs", "locks", "notes")


@dataclass(frozen=True, kw_only=True)
class Item:
    """A result in the store, or what is left of building one.

    Attributes:
        finished: whether it is whole; else it is left of a build that did not end.
        rests_on: kind and key of the results that it was made from; None where that was not written down.
    """

    kind: str
    name: str
    path: Path
    size_bytes: int
    finished: bool = True
    rests_on: tuple[tuple[str, str], ...] | None = ()

    @property
    def identity(self) -> tuple[str, str]:
        """Kind and key."""
        return self.kind, self.name

    def remove(self) -> None:
        """Take it out of the store, if it still is there.

        Raises:
            StoreError: that cannot be.
        """
        try:
            if self.path.is_dir():
                (self.path / MANIFEST).unlink(missing_ok=True)  # without it the rest is nothing that is found
                shutil.rmtree(self.path)
            else:
                self.path.unlink(missing_ok=True)
            if self.finished:
                self.path.with_suffix(".seen").unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{error.filename or self.path}: cannot be removed ({error.strerror})") from error


def contents(store: Store) -> list[Item]:
    """Everything in a store, by kind and name."""
    kinds = [each for each in sorted(store.root.glob("*")) if each.is_dir() and each.name not in _APART]
    paths = [path for kind in kinds for path in sorted(kind.iterdir()) if path.suffix != ".seen"]
    return [_item(path) for path in paths]


def _item(path: Path) -> Item:
    # What goes away meanwhile, because another process builds it, is left out.
    files = [Path(folder, name) for folder, _, names in os.walk(path) for name in names] if path.is_dir() else [path]
    size = 0
    for file in files:
        with contextlib.suppress(OSError):
            size += file.stat().st_size
    finished, rests_on = False, None
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
        manifest = json.loads((path / MANIFEST).read_text())
        finished = not path.suffix
        rests_on = (
            tuple((str(kind), str(key)) for kind, key in manifest["rests_on"]) if "rests_on" in manifest else None
        )
    return Item(kind=path.parent.name, name=path.name, path=path, size_bytes=size, finished=finished, rests_on=rests_on)


def needed(items: Iterable[Item], roots: set[str], follows: Callable[[Item], bool]) -> set[tuple[str, str]]:
    """Identities of the results that others rest on, and of those themselves.

    Results that do not say what they rest on, and so were made before this was written down, rest on such alone: all of
    these are needed.

    Args:
        roots: keys of results that are to be kept.
        follows: whether an item is kept where what it rests on is.
    """
    known = {item.identity: item for item in items if item.finished}
    todo = [item for item in known.values() if item.name in roots or item.rests_on is None]
    found: set[tuple[str, str]] = set()
    while todo:
        item = todo.pop()
        if item.identity not in found:
            found.add(item.identity)
            todo += [known[each] for each in item.rests_on or () if each in known]
    following = [item for item in known.values() if follows(item) and item.rests_on and {*item.rests_on} <= found]
    return found | {item.identity for item in following}
