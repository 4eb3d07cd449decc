"""Whether files are what was written: full hashes, which are computed again only where a file has been touched."""

import contextlib
import functools
import hashlib
import json
import time
from pathlib import Path

from bitsweep.runtime.plain_files import write_whole

#: Path of a file under its folder -> what tells whether it was touched, and its SHA-256.
Seen = dict[str, tuple[list[int], str]]
#: A file that was touched later than this before may be touched again without its times telling.
_SETTLED_NS = 2_000_000_000


def digests(folder: Path) -> Seen:
    """SHA-256 of every file under a folder."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): (_identity(file), _sha256(file)) for file in files}


def damaged(folder: Path, expected: dict[str, str], *, seen: Path) -> str | None:
    """The first file that is missing or not what was written, and why; None where all are.

    Args:
        expected: path under the folder -> SHA-256.
        seen: file in which hashes are remembered, with size, times and inode of what they are of.
    """
    known, now = _remembered(seen), Seen()
    for name, digest in expected.items():
        file = folder / name
        try:
            identity = _identity(file)
            same = name in known and known[name][0] == identity
            now[name] = identity, known[name][1] if same else _sha256(file)
        except OSError as error:
            return f"{name}: {error.strerror}"
        if now[name][1] != digest:
            return f"{name}: other bytes than were written"
    if now != known:
        remember(now, seen)
    return None


def digest_of(file: Path) -> str:
    """SHA-256 of a file, which this process computes again only where it has been touched."""
    identity = _identity(file)
    settled = time.time_ns() - max(identity[1], identity[2]) > _SETTLED_NS
    return _known_sha256(file, tuple(identity)) if settled else _sha256(file)


def remember(now: Seen, seen: Path) -> None:
    """Write down hashes, at once or not at all; where there is no room they are computed again."""
    with contextlib.suppress(OSError):
        write_whole(seen, json.dumps(now))


@functools.lru_cache(maxsize=256)
def _known_sha256(file: Path, identity: tuple[int, ...]) -> str:
    return _sha256(file)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _identity(file: Path) -> list[int]:
    about = file.stat()
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]


def _remembered(seen: Path) -> Seen:
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {name: (identity, digest) for name, (identity, digest) in json.loads(seen.read_text()).items()}
    return {}
