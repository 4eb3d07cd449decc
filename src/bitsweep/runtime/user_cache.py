"""The user's folder of caches: what lies there saves time, and may be deleted at any time."""

import contextlib
import os
import tempfile
from pathlib import Path


def read_cached(name: str) -> bytes | None:
    """What was kept under a name; None where there is nothing, or where it cannot be read."""
    try:
        return (_folder() / name).read_bytes()
    except OSError:
        return None


def write_cached(name: str, content: bytes, *, at_most: int | None = None) -> None:
    """Keep something whole under a name, where that can be done.

    Args:
        at_most: files in the folder of that name; the oldest go.
    """
    with contextlib.suppress(OSError):
        file = _folder() / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if at_most is not None:
            _forget_oldest(file.parent, at_most)
        handle, unfinished = tempfile.mkstemp(dir=file.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        Path(unfinished).replace(file)


def _folder() -> Path:
    """Raises OSError where the user has no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitsweep"
    except RuntimeError as error:
        raise OSError(str(error)) from error


def _forget_oldest(folder: Path, at_most: int) -> None:
    """Make room for one more file, and for others after it."""
    kept = list(folder.iterdir())
    if len(kept) >= at_most:
        for file in sorted(kept, key=lambda each: each.stat().st_mtime)[: at_most // 2]:
            file.unlink(missing_ok=True)
