"""Knobs as overrides of a command line: what differs from the defaults, written so that it can be read back."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

#: Strings that need no quotes, and are not taken for a number, a truth value or nothing.
_PLAIN = re.compile(r"[A-Za-z_./][\w./:@%+-]*", re.ASCII)
_RESERVED = re.compile(r"(?i)true|false|null|nan|inf|-?\d.*|.*\s")


def differing(knobs: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """The knobs whose values are not the defaults, with their values as words.

    Args:
        knobs, defaults: JSON types; mappings within are gone through.
        prefix: what the names begin with, e.g. ``method.``.

    Yields:
        Name, e.g. ``method.percentile``, and value, e.g. ``99.9``.
    """
    for name, value in knobs.items():
        default = defaults.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            yield from differing(value, default, f"{prefix}{name}.")
        elif name not in defaults or value != default:
            yield f"{prefix}{name}", as_word(value)


def as_word(value: Any) -> str:
    """A value in the grammar of overrides, e.g. ``[1,2]`` or ``'a b'``."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            if _PLAIN.fullmatch(value) and not _RESERVED.fullmatch(value):
                return value
            return "'" + re.sub(r"(\\*)'", r"\1\1\\'", re.sub(r"(\\+)$", r"\1\1", value)) + "'"
        case Mapping():
            return "{" + ",".join(f"{as_word(name)}:{as_word(each)}" for name, each in value.items()) + "}"
        case list() | tuple():
            return "[" + ",".join(map(as_word, value)) + "]"
    return str(value)
