"""Names and messages of others, made fit to be shown: nothing in them acts on what shows them."""

import csv
from collections.abc import Iterable
from pathlib import Path

#: Characters without a shape that letters of some scripts, and some emoji, are joined by.
_JOINERS = "\u200c\u200d"


def plain(text: str) -> str:
    """A text as one line of characters that can be seen.

    White space of any kind becomes a space. What steers a terminal or the direction of writing, and what is no
    character, becomes an escape such as ``\\x1b``.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _JOINERS else _escape(c) for c in " ".join(text.split()))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def shortened(text: str, most: int) -> str:
    """A text of at most so many characters, the middle of a longer one left out."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most - most // 2 - 1) :]}"


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def counted(count: int, noun: str) -> str:
    """How many there are: ``1 cell``, ``3 cells``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def say(*lines: str) -> None:
    """Print lines at once, whatever names are in them."""
    for line in lines:
        print(plain(line), flush=True)


def write_csv(rows: Iterable[Iterable[object]], path: Path) -> None:
    """Write a table whose texts may be anybody's as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([plain(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
