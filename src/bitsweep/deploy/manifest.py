"""What a bundle consists of: the hash of every file of it. Nothing else in its folder is trusted."""

import contextlib
import hashlib
import json
from pathlib import Path, PurePosixPath

MANIFEST = "manifest.json"
_BLOCK_BYTES = 1 << 20


def write_manifest(folder: Path) -> None:
    """Write down the SHA-256 of every file in a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / MANIFEST)
    hashes = {}
    for file in files:
        with file.open("rb") as stream:
            hashes[file.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    (folder / MANIFEST).write_text(_text(hashes))


def check_manifest(folder: Path, *, copy: Path | None = None) -> list[str]:
    """Compare every file of a bundle with its manifest.

    Args:
        copy: empty folder that gets the manifest and what it lists, byte for byte as it was compared; None: no copy.

    Returns:
        The names of the files.

    Raises:
        ValueError: a file is missing, changed or no file, or the manifest itself is not as it was written.
    """
    try:
        text = (folder / MANIFEST).read_bytes().decode()
        hashes: dict[str, str] = json.loads(text)
        whole = text == _text(hashes)
    except FileNotFoundError as error:
        raise ValueError(f"{MANIFEST} is missing") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{MANIFEST} cannot be read") from error
    if not whole or any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in hashes):
        raise ValueError(f"{MANIFEST} is not as it was written")
    if copy:
        (copy / MANIFEST).write_text(text)
    changed = [name for name, expected in hashes.items() if _hash(folder, name, copy) != expected]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ValueError(f"{', '.join(changed[:3])}{more}: missing, or not as written down in {MANIFEST}")
    return list(hashes)


def _hash(folder: Path, name: str, copy: Path | None) -> str:
    """SHA-256 of a file, copied on the way; empty where there is none."""
    file = folder / name
    if not file.is_file():
        return ""
    digest = hashlib.sha256()
    if copy:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
    with file.open("rb") as source, (copy / name).open("wb") if copy else contextlib.nullcontext() as target:
        while block := source.read(_BLOCK_BYTES):
            digest.update(block)
            if target:
                target.write(block)
    return digest.hexdigest()


def _text(hashes: dict[str, str]) -> str:
    return json.dumps(dict(sorted(hashes.items())), indent=2) + "\n"
