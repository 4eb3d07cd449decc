"""What a file of weights is, by its first bytes and its table of contents: nothing in it is read or run."""

import contextlib
import json
import zipfile
from pathlib import Path

from bitsweep.errors import ConfigError

#: How weights are to be saved.
SAVE = "torch.save(network.state_dict(), FILE)"
#: Of a safetensors file: the length of its head comes first, in so many bytes.
_LENGTH_BYTES = 8
_PROGRAMS = frozenset({"constants.pkl", "serialized_exported_program.json"})
#: What pickles of a protocol begin with.
_PICKLES = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))


def is_safetensors(file: Path) -> bool:
    """Whether a file is one of safetensors by its name, or by how it begins."""
    with file.open("rb") as stream:
        head = stream.read(_LENGTH_BYTES + 1)
    return file.suffix == ".safetensors" or (head[5:] == b"\0\0\0{" and len(head) == _LENGTH_BYTES + 1)


def require_weights(file: Path) -> None:
    """Refuse what cannot hold a state_dict.

    Raises:
        ConfigError: why, without the name of the file.
    """
    if not file.stat().st_size:
        raise ConfigError("is empty; get it again")
    if is_safetensors(file):
        if not _has_whole_head(file):
            raise ConfigError("is damaged or cut off (its head is not whole); get it again")
        return
    with file.open("rb") as stream:
        start = stream.read(2)
    if start in _PICKLES:
        return
    if start != b"PK":
        raise ConfigError(f"is not a file of torch.save or safetensors; give a state_dict: {SAVE}")
    names: set[str] = set()
    with contextlib.suppress(Exception), zipfile.ZipFile(file) as archive:  # whatever is wrong with it
        names = {Path(name).name for name in archive.namelist()}
    if not names:
        raise ConfigError("is damaged or cut off (it ends before its table of contents); get it again")
    if names & _PROGRAMS:
        raise ConfigError(f"is a program (TorchScript or torch.export), not a state_dict; save one: {SAVE}")
    if "data.pkl" not in names:
        raise ConfigError(f"is an archive, and none of torch.save; give a state_dict: {SAVE}")


def _has_whole_head(file: Path) -> bool:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if length > file.stat().st_size - _LENGTH_BYTES:
            return False
        with contextlib.suppress(ValueError, RecursionError):
            return isinstance(json.loads(stream.read(length)), dict)
    return False
