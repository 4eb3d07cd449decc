"""Templates in which no text of anybody's is taken for HTML or Markdown, whatever is in it."""

import base64
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from bitsweep.text import plain

if TYPE_CHECKING:
    from jinja2 import Environment

#: What has a meaning in Markdown wherever it stands, and at the start of a line.
_ANYWHERE = re.compile(r"([\\`*_\[\]<>|~$&#])")
_AT_THE_START = re.compile(r"^(\d+(?=[.)]( |$))|(?=[-+]( |$)|--|=+$))")


class _Made(str):
    """A text that a filter has made fit for where it stands."""

    __slots__ = ()


def html(folder: Path) -> "Environment":
    """Templates of HTML.

    Args:
        folder: where the page will be, which addresses of pictures are relative to.
    """
    environment = _environment(_shown_in_html, autoescape=True)
    environment.filters |= {
        "lines": lambda text: _Made(_lines(text)),
        "base64": lambda data: _Made(base64.b64encode(data).decode()),
        "beside": partial(_beside, folder=folder),
        "linked": partial(_linked_in_html, folder=folder),
        "bold": _bold_in_html,
    }
    return environment


def markdown(folder: Path) -> "Environment":
    """Templates of Markdown.

    Args:
        folder: where the text will be, which addresses of pictures are relative to.
    """
    environment = _environment(_shown_in_markdown, autoescape=False)
    environment.filters |= {
        "code": _code,
        "fenced": _fenced,
        "url": lambda name: _Made(quote(name)),
        "linked": partial(_linked_in_markdown, folder=folder),
    }
    return environment


def _environment(finalize: object, *, autoescape: bool) -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("bitsweep.report"), autoescape=autoescape, finalize=finalize, undefined=StrictUndefined,  # type: ignore[arg-type]
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip


def _shown_in_html(value: object) -> object:
    from markupsafe import Markup

    return plain(value) if isinstance(value, str) and not isinstance(value, _Made | Markup) else value


def _shown_in_markdown(value: object) -> object:
    return escaped(value) if isinstance(value, str) and not isinstance(value, _Made) else value


def escaped(text: str) -> str:
    """A text as a part of a line of Markdown that shows it as it is."""
    return _AT_THE_START.sub(r"\1\\", _ANYWHERE.sub(r"\\\1", plain(text)))


def _beside(picture: Path, folder: Path) -> str:
    return _Made(quote(picture.relative_to(folder).as_posix()))


def _linked_in_html(text: str, pictures: Sequence[Path], folder: Path) -> object:
    """A text in which the names of pictures, with the folder that they are in, lead to them."""
    from markupsafe import Markup, escape

    shown = str(escape(plain(text)))
    for picture in pictures:
        name = escape(f"{picture.parent.name}/{picture.name}")
        shown = shown.replace(name, f'<a href="{_beside(picture, folder)}">{name}</a>')
    return Markup(shown)


def _bold_in_html(text: str, phrases: Sequence[str]) -> object:
    """A text in which some phrases are bold."""
    from markupsafe import Markup, escape

    shown = str(escape(plain(text)))
    for phrase in map(escape, map(plain, phrases)):
        shown = shown.replace(phrase, f"<b>{phrase}</b>")
    return Markup(shown)


def _linked_in_markdown(text: str, pictures: Sequence[Path], folder: Path) -> str:
    shown = escaped(text)
    for picture in pictures:
        name = escaped(f"{picture.parent.name}/{picture.name}")
        shown = shown.replace(name, f"[{name}]({_beside(picture, folder)})")
    return _Made(shown)


def _lines(text: str) -> str:
    return "\n".join(map(plain, text.split("\n")))


def _code(text: str) -> str:
    shown = plain(text)
    ticks = _longer_than_any(shown, "`")
    return _Made(f"{ticks}{shown}{ticks}" if ticks == "`" else f"{ticks} {shown} {ticks}")


def _fenced(text: str) -> str:
    shown = _lines(text)
    fence = max("```", _longer_than_any(shown, "`"))
    return _Made(f"{fence}\n{shown}\n{fence}")


def _longer_than_any(text: str, character: str) -> str:
    """So many of a character that they are in no text in a row."""
    longest = max((len(run) for run in re.findall(f"{re.escape(character)}+", text)), default=0)
    return character * (longest + 1)
