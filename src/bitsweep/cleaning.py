"""Freeing the room that a store takes: what no finished cell rests on, or more where that is asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bitsweep.errors import UsageError
from bitsweep.final_race import RACE
from bitsweep.runtime.store import Store
from bitsweep.runtime.store_contents import Item, contents, needed
from bitsweep.stages import BASELINE_EVIDENCE, EVIDENCE
from bitsweep.tracking.connection import Connection

#: Kinds of results that say something about others, and that nothing rests on.
_FOLLOWING = (EVIDENCE.name, BASELINE_EVIDENCE.name, RACE)


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a store holds.

    Attributes:
        free: what can go, with the reason.
    """

    items: tuple[Item, ...]
    free: tuple[tuple[Item, str], ...]

    def lines(self) -> Iterator[str]:
        """Room by kind, and a line an item that can go."""
        going = {item.identity for item, _ in self.free}
        for kind in dict.fromkeys(item.kind for item in self.items):
            of_kind = [item for item in self.items if item.kind == kind]
            free = _mb([item for item in of_kind if item.identity in going])
            count = f"{len(of_kind)} item{'s' * (len(of_kind) != 1)}"
            yield f"{kind:<18} {_mb(of_kind):>10.2f} MB in {count}, of which {free:.2f} MB can go"
        for item, reason in self.free:
            yield f"{item.kind}/{item.name}  {_mb([item]):.2f} MB: {reason}"


def room(store: Store, *, kinds: Sequence[str] = (), force: bool = False) -> Room:
    """What a store holds, and what of it can go.

    Args:
        kinds: of what may go; none for all.
        force: let also go what finished cells rest on, and what a killed training would go on from.

    Raises:
        UsageError: there is no such store or kind, or a sweep is running that may need what looks unneeded.
    """
    if not store.root.is_dir():
        raise UsageError(f"--store {store.root}: {'is a file' if store.root.exists() else 'there is no such folder'}")
    if not (store.root / "locks").is_dir():
        raise UsageError(f"--store {store.root}: is no store, so nothing in it is ours to remove")
    items = contents(store)
    known = sorted({item.kind for item in items})
    if unknown := [kind for kind in kinds if kind not in known]:
        raise UsageError(f"--kind {unknown[0]}: the store has none; it has {', '.join(known) or 'nothing'}")
    Connection(read_only=True)  # where nothing was measured, no database is made
    connection = Connection()
    with connection.explained():
        started = connection.search("tags.kind = 'sweep' and attributes.status = 'RUNNING'")
        running = [run.data.tags["sweep"] for run in started]
    if running:
        raise UsageError(f"the sweep {running[0]} is running: wait for its end")
    if store.in_use():  # by a sweep of another database
        raise UsageError(f"--store {store.root}: another process is at work in it: wait for its end")
    roots = {*connection.cells(), *connection.baselines(), *_elsewhere(store, connection)}
    kept = needed(items, roots, lambda item: item.kind in _FOLLOWING)
    wanted = [item for item in items if not kinds or item.kind in kinds]
    free = [(item, reason) for item in wanted if (reason := _reason(item, kept, force=force))]
    return Room(items=tuple(items), free=tuple(free))


def _elsewhere(store: Store, connection: Connection) -> Iterator[str]:
    """Keys of cells and baselines of sweeps that used this store, and are in no or another database."""
    for folder in (store.root / "notes").glob("*"):
        if connection.run(folder.name) is None:
            for entry in store.read_note(folder.name, "plan.json") or ():
                if entry.get("verdict") in ("finished", "lowered", "reuse"):
                    yield from (entry["key"], entry["baseline_key"])


def _reason(item: Item, kept: set[tuple[str, str]], *, force: bool) -> str:
    """Why an item can go; empty where it cannot."""
    if item.path.suffix == ".unfinished":
        return "a killed training would go on from it" if force else ""
    if not item.finished:
        return "left of a build that did not end"
    if item.identity not in kept:
        return "no finished cell rests on it"
    return "finished cells rest on it, and it would be made again" if force else ""


def _mb(items: Sequence[Item]) -> float:
    return sum(item.size_bytes for item in items) / 1e6


def clean(folder: Path, *, kinds: Sequence[str], delete: bool, force: bool) -> None:
    """Print what a store holds and what can go, and remove that where it is asked for."""
    found = room(Store(folder), kinds=kinds, force=force)
    for line in found.lines():
        print(line)
    for item, _ in found.free if delete else ():
        item.remove()
    freed = f"{_mb([item for item, _ in found.free]):.2f} of {_mb(found.items):.2f} MB"
    print(f"freed {freed}" if delete else f"{freed} can go: bitsweep clean --delete{' --force' * force}")
