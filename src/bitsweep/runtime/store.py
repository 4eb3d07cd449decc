"""The artifact store: folders found by their key, published whole or not at all.

<root>/<kind>/<key>/              a finished folder with its manifest.json
<root>/<kind>/<key>.<host>.<pid>.partial/  being built by the holder of the lock; leftovers of this host are thrown away
<root>/<kind>/<key>.unfinished    what its builder goes on from after a kill; gone when the folder is finished
<root>/<kind>/<key>.seen          hashes of its files, remembered until one of them is touched
<root>/notes/<id>/                documents that are kept elsewhere, too
<root>/locks/<kind>-<key>.lock    held while building
<root>/jobs/                      which jobs of a cluster a command waits for
<root>/durations.jsonl            how long building took, for estimates
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bitsweep.errors import StoreError, ran_out_of_space
from bitsweep.runtime import durations
from bitsweep.runtime.integrity import damaged, digests, remember
from bitsweep.runtime.permissions import close_to_others, keeps_modes, make_folder, open_to_others
from bitsweep.runtime.plain_files import require_plain, write_whole

log = logging.getLogger(__name__)
#: Folders that a warning was given about: one looks for them several times before they are built again.
_told: set[Path] = set()
MANIFEST = "manifest.json"
_DURATIONS = "durations.jsonl"
#: Of the machine; folders that several machines share may have no locks that hold between them.
_HOST = socket.gethostname() or "host"
#: Folders whose content is loaded, and files that vouch for it: a manifest holds the hashes of all others beside it.
_TRUSTED = ("*/", "*/*/", f"*/*/{MANIFEST}", "*/*.seen", "*/*.unfinished")


class Store:
    """Finished work by kind and key. Safe for parallel processes, and against being killed.

    Processes of one machine wait for each other. Those of several that share a folder may build the same at once: the
    first result counts.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()  # whoever changes the working directory later

    def check(self) -> None:
        """Make sure that the store can be written, and by nobody else: what is found in it is loaded and run.

        Raises:
            StoreError: naming the folder and what to do.
        """
        with self._explained():
            make_folder(self.root)
            probe = self.root / f".probe-{os.getpid()}"
            probe.touch(mode=0o600)
            probe.write_bytes(b"\0" * 4096)
            has_modes = keeps_modes(probe)
            probe.unlink()
            if has_modes and (unsafe := open_to_others(self.root, _TRUSTED)):
                raise StoreError(
                    f"store.folder={self.root}: others may write {unsafe}, and what is in a store is loaded and run; "
                    f"take the right away (chmod -R go-w {self.root}), or choose a folder of your own: "
                    "store.folder=/another/folder"
                )

    def require_folder(self) -> None:
        """Make sure that the store is there, or can be made, and can be written; nothing is left behind.

        Raises:
            StoreError: there is a file, or nothing can be written there.
        """
        with self._explained():
            there = next(place for place in (self.root, *self.root.parents) if place.exists())
            if not there.is_dir():
                raise StoreError(f"store.folder={self.root}: {there} is a file; name a folder")
            tempfile.TemporaryDirectory(prefix=".probe-", dir=there).cleanup()

    def folder(self, kind: str, key: str) -> Path:
        """Where the folder of a key is, or will be."""
        return self.root / kind / key

    def unfinished(self, kind: str, key: str) -> Path:
        """File in which the builder of a key may keep what it needs to go on after it was killed."""
        return self.folder(kind, key).with_suffix(".unfinished")

    def find(self, kind: str, key: str) -> Path | None:
        """The finished folder of a key, or None.

        A folder with a file that is missing or has other bytes than were written does not count: a warning says so,
        and it is built again.
        """
        folder = self.folder(kind, key)
        if not (folder / MANIFEST).exists():
            return None
        reason = self._damage(folder, kind, key)
        if reason is None:
            _told.discard(folder)
            return folder
        if folder not in _told:
            _told.add(folder)
            log.warning("%s is damaged (%s); it will be built again", folder, reason)
        return None

    def _damage(self, folder: Path, kind: str, key: str) -> str | None:
        """What keeps a folder from being the finished one of a key; None for nothing."""
        try:
            return damaged(folder, _manifest(folder)["files"], seen=self.folder(kind, key).with_suffix(".seen"))
        except (OSError, ValueError, RecursionError) as error:
            return f"{MANIFEST}: {error}"

    def take(self, kind: str, key: str, bring: Callable[[Path], None]) -> Path | None:
        """The finished folder of a key; where there is none, one that another store finished.

        Like everything that is read it does not count if files are missing or have other bytes than were written.

        Args:
            bring: copies such a folder, with its manifest, into an empty one.

        Returns:
            None where what was brought is damaged, which a warning says.

        Raises:
            StoreError: the disk is full or the store cannot be written.
        """
        with self.holding(kind, key):
            if found := self.find(kind, key):
                return found
            with self._partial(kind, key) as partial, self._explained():
                bring(partial)
                if reason := self._damage(partial, kind, key):
                    log.warning("the %s %s that was brought is damaged (%s)", kind, key, reason)
                    return None
                self._publish(partial, kind, key)
        return self.folder(kind, key)

    def discard(self, kind: str, key: str) -> None:
        """Throw the finished folder of a key away, so that it is built again."""
        with self._explained():
            shutil.rmtree(self.folder(kind, key), ignore_errors=True)

    @contextlib.contextmanager
    def building(
        self, kind: str, key: str, *, about: dict[str, str], rests_on: Sequence[tuple[str, str]] = ()
    ) -> Iterator[Path | None]:
        """Hold the lock of a key and build its folder.

        Args:
            about: what is built, kept in the manifest for later time estimates.
            rests_on: kind and key of what it is made from, kept there, too.

        Yields:
            An empty folder, published when the block ends without an error; None if another process has finished
            it meanwhile.

        Raises:
            StoreError: the disk is full or the store cannot be written.
        """
        with self.holding(kind, key):
            if self.find(kind, key):
                yield None
                return
            start = time.monotonic()
            with self._partial(kind, key) as partial, self._explained():
                yield partial
                seconds = time.monotonic() - start
                seen = digests(partial)
                files = {name: digest for name, (_, digest) in seen.items()}
                manifest = {"about": about, "seconds": seconds, "files": files, "rests_on": [*map(list, rests_on)]}
                (partial / MANIFEST).write_text(json.dumps(manifest | {"digest": _digest(manifest)}))
                if self._publish(partial, kind, key):
                    remember(seen, self.folder(kind, key).with_suffix(".seen"))
                self.unfinished(kind, key).unlink(missing_ok=True)
            durations.remember(self.root / _DURATIONS, kind, about, seconds)

    @contextlib.contextmanager
    def _partial(self, kind: str, key: str) -> Iterator[Path]:
        """An empty folder beside that of a key, gone in the end. Its lock must be held."""
        partial = self.folder(kind, key).with_name(f"{key}.{_HOST}.{os.getpid()}.partial")
        with self._explained():
            for left in partial.parent.glob(f"{key}.{_HOST}.*.partial"):
                _remove(left)
            make_folder(partial)
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @contextlib.contextmanager
    def holding(self, kind: str, key: str) -> Iterator[None]:
        """Hold the lock of a key: processes of one machine do one after the other what they do meanwhile.

        Raises:
            StoreError: there can be no lock.
        """
        with self._explained():
            make_folder(self.root / "locks")
            file = self.root / "locks" / f"{kind}-{key}.lock"
            require_plain(file)
            lock = FileLock(file)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def in_use(self) -> bool:
        """Whether a process of this machine holds the lock of any key."""
        with self._explained():
            for file in (self.root / "locks").glob("*.lock"):
                require_plain(file)
                try:
                    with FileLock(file, timeout=0):
                        pass
                except Timeout:
                    return True
        return False

    def _publish(self, partial: Path, kind: str, key: str) -> bool:
        """Let a built folder be found; False where another machine was first, whose folder is as good.

        Locks do not hold on every file system that machines share.
        """
        final = self.folder(kind, key)
        if self.find(kind, key):
            return False
        _remove(final)
        close_to_others(partial)  # whatever umask code that is not ours has set
        try:
            partial.replace(final)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or not self.find(kind, key):
                raise
            return False
        return True

    def finished_ns(self, kind: str, key: str) -> int:
        """When a finished folder was finished, in nanoseconds; 0 where there is none."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder(kind, key) / MANIFEST).stat().st_mtime_ns
        return 0

    def write_note(self, of: str, name: str, content: Any) -> None:
        """Keep a JSON document beside the finished work."""
        with self._explained():
            make_folder(self.root / "notes")
            make_folder(self.root / "notes" / of)
            write_whole(self.root / "notes" / of / name, json.dumps(content))

    def read_note(self, of: str, name: str) -> Any:
        """A JSON document that was kept; None where there is none."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.root / "notes" / of / name).read_text())
        return None

    def seconds(self, kind: str, key: str) -> float:
        """How long a finished folder took to build."""
        return float(_manifest(self.folder(kind, key))["seconds"])

    def estimate(self, kind: str, about: dict[str, str]) -> float | None:
        """Median seconds that building this kind took for the same model and data set, or for any; None if never."""
        return durations.estimate(self.root / _DURATIONS, kind, about)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if ran_out_of_space(error):
                why = f"the disk under {self.root} is full; free some space, or move it: store.folder=/another/folder"
            else:
                told = error.strerror or error
                told = f"{error.filename}: {told}; remove it" if error.errno == errno.EEXIST else told
                why = f"store.folder={self.root}: cannot be written ({told}); choose a folder that can be"
            raise StoreError(why) from error


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished folder.

    Raises:
        OSError, ValueError: it cannot be read, or is not what was written.
    """
    manifest = json.loads((folder / MANIFEST).read_text())
    if not isinstance(manifest, dict) or manifest.pop("digest", "") != _digest(manifest):
        raise ValueError("other bytes than were written")
    return manifest


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _remove(path: Path) -> None:
    """Remove whatever is in the way."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
