"""Checkpoints as people have them: reads the tensors of any, runs the code of none, and finds the state_dict in it."""

import contextlib
import re
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitsweep.config.weights_file import SAVE, is_safetensors, require_weights
from bitsweep.errors import ConfigError
from bitsweep.text import say

State = Mapping[str, Tensor]

#: Parts of names that wrappers put between those of a network: compiled, sharded, checkpointed or parallel modules.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "module")
#: What is not taken where there is a plain state beside it.
_AVERAGED = re.compile(r"ema|avg|average|swa", re.IGNORECASE)
#: Counters that wrappers keep beside the weights.
_COUNTERS = frozenset({"n_averaged"})
_UNKNOWN = re.compile(r"GLOBAL ([\w.]+) was not an allowed global")
_OF_ITS_OWN = re.compile(rf"got <class '{re.escape(__name__)}\.([^']+)'>")
_DEPTH, _MOST_CLASSES = 4, 100
_BLOCK_BYTES = 1 << 20


class _Stranger:
    """Stands for an object of a class that is not torch's: nothing of it is imported, called or kept."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Stranger":
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None: ...


class _StrangeMapping(_Stranger):
    """The same for a dictionary of its own: the plain one that it extends."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


class _StrangeList(_Stranger, list[Any]):
    """The same for a list of its own."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_StrangeList":
        return list.__new__(cls)


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A dictionary of tensors in a checkpoint.

    Attributes:
        place: keys that lead to it.
        state: its tensors by the names that the network has for them.
        prefix: what was taken off their names.
        beside: names that do not have it.
        fitting: how many names of the network it has.
    """

    place: tuple[str, ...]
    state: State
    prefix: str
    beside: tuple[str, ...]
    fitting: int

    @property
    def named(self) -> str:
        return ".".join(self.place) or "the file itself"


def read_weights(file: Path, own: State, *, parameters: frozenset[str]) -> State:
    """The tensors for a network, by its names; what was chosen or left out is printed.

    Args:
        own: the network's own state_dict.
        parameters: those of its names that must be finite; elsewhere infinities may be masks.

    Raises:
        ConfigError: the file is empty, damaged, or no checkpoint; it holds no state_dict, or one that is not finite.
    """
    origin = f"model.weights={file}"
    try:
        require_weights(file)
        content = _safetensors(file) if is_safetensors(file) else _unpickled(file)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from error
    except OSError as error:
        raise ConfigError(f"{origin}: cannot be read ({error.strerror or error})") from error
    found = sorted(
        (_renamed(place, state, own) for place, state in _states(content)),
        key=lambda each: (-each.fitting, bool(_AVERAGED.search(".".join(each.place)))),
    )
    if not found:
        raise ConfigError(f"{origin}: {_what(content)}; save the weights alone: {SAVE}")
    best = found[0]
    if best.place or best.prefix:
        prefix = f", without the prefix {best.prefix}" if best.prefix else ""
        say(f"{origin}: takes {best.named}{prefix}")
    if others := [each.named for each in found[1:] if each.fitting == best.fitting and each.fitting]:
        say(f"{origin}: {', '.join(others)} would fit as well, and is left out: to take it, save it alone")
    if best.beside:
        say(f"{origin}: left out: {', '.join(best.beside[:3])}{', ...' if len(best.beside) > 3 else ''}")
    _require_finite(best.state, origin, parameters)
    return best.state


def _safetensors(file: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ConfigError("safetensors, which reads it, is not installed; run: pip install safetensors") from error
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ConfigError(_damaged(str(error))) from error


def _unpickled(file: Path) -> Any:
    """The content, with strangers in the place of all that is not tensors, numbers, texts and containers of them."""
    if damaged := _damaged_member(file):
        raise ConfigError(f"is damaged ({damaged} is not what was written); get it again")
    kinds: dict[str, type[_Stranger]] = {}
    while True:
        allowed: list[Any] = [(type(name, (kind,), {"__module__": __name__}), name) for name, kind in kinds.items()]
        try:
            with torch.serialization.safe_globals(allowed):
                return torch.load(file, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except Exception as error:  # unpickling something else can raise anything
            text = str(error)
            kind = _StrangeMapping if "SETITEM" in text else _StrangeList if "append" in text else _Stranger
            learned = [match[1] for match in (_UNKNOWN.search(text), _OF_ITS_OWN.search(text)) if match]
            if any(kinds.get(name) is not kind for name in learned) and len(kinds) < _MOST_CLASSES:
                kinds = {**dict.fromkeys(_all_unknown(file), _Stranger), **kinds, **dict.fromkeys(learned, kind)}
                continue
            raise ConfigError(_why_not(error)) from error


def _damaged_member(file: Path) -> str:
    """The first part of a checkpoint that is not as its checksum says, which torch does not look at."""
    with contextlib.suppress(Exception), zipfile.ZipFile(file) as archive:  # torch says what is wrong with it
        for member in (each for each in archive.infolist() if each.CRC):  # without one where torch was told so
            try:
                with archive.open(member) as stream:
                    while stream.read(_BLOCK_BYTES):
                        pass
            except zipfile.BadZipFile:
                return member.filename
    return ""


def _all_unknown(file: Path) -> list[str]:
    """All names in a checkpoint that are not torch's own, where its format lets them be listed."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(str(file))
    except Exception:  # the format of old
        return []


def _why_not(error: Exception) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    if blocked := re.search(r"(\w+(?:\.\w+)*) (?:whose module \w+ is|is) blocked", text):
        return f"asks for {blocked[1]}, which runs commands: do not use this file"
    if "Unsupported" in text or "Can only" in text or "Trying to" in text:
        return f"holds objects that only their own code can read; where you trust it, save the weights alone: {SAVE}"
    return _damaged(text)


def _damaged(text: str) -> str:
    return f"is damaged or cut off ({' '.join(text.split())[:100]}); get it again"


def _states(content: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], State]]:
    """All dictionaries that hold tensors by names, and where they are."""
    if not isinstance(content, Mapping) or len(place) > _DEPTH:
        return
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield place, tensors
    for name, value in content.items():
        if isinstance(name, str):
            yield from _states(value, (*place, name))


def _renamed(place: tuple[str, ...], state: State, own: State) -> _Candidate:
    """A state by the names of the network: without the parts of wrappers, and without a common prefix."""
    wrappers = {part for part in _WRAPPERS if not any(part in name.split(".") for name in own)}
    original = {".".join(part for part in name.split(".") if part not in wrappers): name for name in state}
    prefixes = Counter(name.removesuffix(known) for name in original for known in _tails(name) if known in own)
    prefix = max(prefixes, key=lambda each: (prefixes[each], not _AVERAGED.search(each), -len(each)), default="")
    if prefixes[prefix] <= len(own) // 2:
        prefix = ""
    taken = {name.removeprefix(prefix): name for name in original if name.startswith(prefix)}
    taken = {name: original[full] for name, full in taken.items() if name in own or name not in _COUNTERS}
    removed = [
        part for part in _WRAPPERS if any(part in full.split(".") for full in taken.values()) and part in wrappers
    ]
    return _Candidate(
        place=place,
        state={name: state[full] for name, full in taken.items()},
        prefix="".join(f"{part}." for part in removed) + prefix,
        beside=tuple(full for name, full in original.items() if not name.startswith(prefix)),
        fitting=sum(name in own for name in taken),
    )


def _tails(name: str) -> Iterator[str]:
    """A name, and what is left of it without its first part, its first two, and so on."""
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))


def _what(content: Any) -> str:
    if isinstance(content, _Stranger):
        name = type(content).__name__.rpartition(".")[2]
        return f"is a whole module or object ({name}), which only its own code can read"
    if isinstance(content, Mapping):
        return f"holds no state_dict (keys: {', '.join(map(str, list(content)[:5]))})"
    return f"holds no state_dict, but {type(content).__name__}"


def _require_finite(state: State, origin: str, parameters: frozenset[str]) -> None:
    for name, value in state.items():
        if value.is_quantized or value.is_meta or value.layout != torch.strided:
            raise ConfigError(f"{origin}: {name} is quantized, sparse, or without values; give plain float weights")
        if value.is_complex() or (name in parameters and not value.is_floating_point()):
            kind = str(value.dtype).removeprefix("torch.")
            raise ConfigError(f"{origin}: {name} holds numbers of the kind {kind}; give plain float weights")
        if not value.is_floating_point():
            continue
        value = value.float()
        bad = ~torch.isfinite(value) if name in parameters else torch.isnan(value)
        if bad.any():
            what = "NaN" if torch.isnan(value).any() else "infinities"
            raise ConfigError(
                f"{origin}: {name} holds {what} ({int(bad.sum())} of {value.numel()} values): the training failed; "
                "take an earlier checkpoint"
            )
