"""The artifact store: folders found by their key, published whole or not at all.

<root>/<kind>/<key>/              a finished folder with its manifest.json
<root>/<kind>/<key>.partial/      being built by the holder of the lock; a leftover is thrown away
<root>/<kind>/<key>.unfinished    what its builder goes on from after a kill; gone when the folder is finished
<root>/locks/<kind>-<key>.lock    held while building
"""

import contextlib
import functools
import json
import logging
import os
import shutil
import statistics
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from bitsweep.errors import StoreError, ran_out_of_space

log = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_PROBED_BYTES = 1 << 20


class Store:
    """Finished work by kind and key. Safe for parallel processes of one machine, and against being killed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def check(self) -> None:
        """Make sure that the store can be written.

        Raises:
            StoreError: naming the folder and what to do.
        """
        with self._explained():
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{os.getpid()}"
            probe.write_bytes(b"\0" * 4096)
            probe.unlink()

    def folder(self, kind: str, key: str) -> Path:
        """Where the folder of a key is, or will be."""
        return self.root / kind / key

    def unfinished(self, kind: str, key: str) -> Path:
        """File in which the builder of a key may keep what it needs to go on after it was killed."""
        return self.folder(kind, key).with_suffix(".unfinished")

    def find(self, kind: str, key: str) -> Path | None:
        """The finished folder of a key, or None.

        A folder whose files are missing, truncated or damaged at either end does not count: a warning says so, and
        it is built again.
        """
        folder = self.folder(kind, key)
        try:
            manifest = json.loads((folder / _MANIFEST).read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("%s is unreadable (%s); it will be built again", folder, error)
            return None
        for name, expected in manifest["files"].items():
            try:
                found = _probe(folder / name)
            except OSError as error:
                found = [error.strerror]
            if found != expected:
                log.warning("%s is damaged; %s will be built again", folder / name, kind)
                return None
        return folder

    def discard(self, kind: str, key: str) -> None:
        """Throw the finished folder of a key away, so that it is built again."""
        with self._explained():
            shutil.rmtree(self.folder(kind, key), ignore_errors=True)

    @contextlib.contextmanager
    def building(self, kind: str, key: str, *, about: dict[str, str]) -> Iterator[Path | None]:
        """Hold the lock of a key and build its folder.

        Args:
            about: what is built, kept in the manifest for later time estimates.

        Yields:
            An empty folder, published when the block ends without an error; None if another process has finished
            it meanwhile.

        Raises:
            StoreError: the disk is full or the store cannot be written.
        """
        final = self.folder(kind, key)
        partial = final.with_name(final.name + ".partial")
        with self._explained():
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / "locks" / f"{kind}-{key}.lock")
            lock.acquire()
        try:
            if self.find(kind, key):
                yield None
                return
            with self._explained():
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            start = time.monotonic()
            try:
                with self._explained():
                    yield partial
                    files = {str(p.relative_to(partial)): _probe(p) for p in sorted(partial.rglob("*")) if p.is_file()}
                    seconds = time.monotonic() - start
                    manifest = {"about": about, "seconds": seconds, "files": files}
                    (partial / _MANIFEST).write_text(json.dumps(manifest))
                    shutil.rmtree(final, ignore_errors=True)
                    partial.replace(final)
                    self.unfinished(kind, key).unlink(missing_ok=True)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            self._remember(kind, about, seconds)
        finally:
            lock.release()

    def seconds(self, kind: str, key: str) -> float:
        """How long a finished folder took to build."""
        return float(json.loads((self.folder(kind, key) / _MANIFEST).read_text())["seconds"])

    def estimate(self, kind: str, about: dict[str, str]) -> float | None:
        """Median seconds that building this kind took for the same model and data set, or for any; None if never."""
        durations = self.root / "durations.jsonl"
        past = _history(durations, durations.stat().st_mtime_ns).get(kind, []) if durations.exists() else []
        alike = [seconds for what, seconds in past if what == about] or [seconds for _, seconds in past]
        return statistics.median(alike) if alike else None

    def _remember(self, kind: str, about: dict[str, str], seconds: float) -> None:
        with (self.root / "durations.jsonl").open("a") as durations:
            durations.write(json.dumps([kind, about, round(seconds, 3)]) + "\n")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if ran_out_of_space(error):
                why = f"the disk under {self.root} is full; free some space, or move the store: store=/another/folder"
            else:
                why = f"store={self.root}: cannot be written ({error.strerror or error}); choose a folder that can be"
            raise StoreError(why) from error


@functools.cache
def _history(durations: Path, changed_ns: int) -> dict[str, list[tuple[Any, float]]]:
    """Kind -> what was built and how long it took, from a file as it was at a time."""
    history: dict[str, list[tuple[Any, float]]] = {}
    for line in durations.read_text().splitlines():
        with contextlib.suppress(ValueError):
            kind, about, seconds = json.loads(line)
            history.setdefault(kind, []).append((about, seconds))
    return history


def _probe(path: Path) -> list[Any]:
    """Size, and checksum of both ends: tells a truncated or overwritten file at little cost whatever its size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        checksum = zlib.crc32(file.read(_PROBED_BYTES))
        if size > _PROBED_BYTES:
            file.seek(max(_PROBED_BYTES, size - _PROBED_BYTES))
            checksum = zlib.crc32(file.read(_PROBED_BYTES), checksum)
    return [size, checksum]
