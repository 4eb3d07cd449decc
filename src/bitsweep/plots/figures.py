"""Figures to draw on, and how they become files."""

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bitsweep.results import Array
from bitsweep.text import plain, shortened

#: Colours of the network before and after it was compressed, wherever both are shown.
BEFORE, AFTER = "0.6", "C0"
_DPI = 100
#: Stands for a character that the font does not have.
_NO_GLYPH = "\u25a1"
#: Height of the title of a figure, in inches.
_TITLE = 0.35


def panels(
    title: str,
    *,
    rows: int = 1,
    columns: int = 1,
    width: float,
    height: float,
    left: float = 0.6,
    right: float = 0.15,
    bottom: float = 0.5,
    top: float = 0.3,
    between: float | None = None,
) -> tuple[Any, list[Any]]:
    """A figure with a title, and its axes row by row.

    Args:
        width, height: of each of the axes, in inches.
        left, right, bottom, top: room around each for its labels, in inches. It is fixed, because to find out what
            they take means to draw them twice.
        between: room between columns, if it is not that of ``left`` and ``right``.
    """
    from matplotlib.figure import Figure

    between = left + right if between is None else between
    across, down = left + columns * width + (columns - 1) * between + right, rows * (bottom + height + top) + _TITLE
    figure = Figure(figsize=(across, down))
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=left / across, right=1 - right / across, bottom=bottom / down, top=1 - (top + _TITLE) / down,
        wspace=between / width, hspace=(bottom + top) / height,
    )  # fmt: skip
    figure.suptitle(drawable(title, max(20, int(across / 0.085))), fontsize=11, y=1 - 0.3 * _TITLE / down, va="top")
    return figure, list(axes.ravel())


def number_logarithmic(axis: Any, ratio: float) -> None:
    """Give a logarithmic axis plain numbers, also where it covers less than one power of ten.

    Args:
        axis: ``axes.xaxis`` or ``axes.yaxis``.
        ratio: of the largest value to the least.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0,) if ratio > 300 else (1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("{x:g}" if 1 < ratio < 4 else NullFormatter())


def label(axes: Any, title: str, x: str, y: str, *, legend: bool = False) -> None:
    """Give axes a title, a name with unit in each direction, a grid, and perhaps a legend."""
    axes.set_title(drawable(title), fontsize=9)
    axes.set_xlabel(drawable(x), fontsize=8)
    axes.set_ylabel(drawable(y), fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    if legend:
        axes.legend(fontsize=7)


def tiles(axes: Any, images: Sequence[Array], captions: Sequence[str], *, columns: int, **drawing: Any) -> None:
    """Draw images side by side in one pair of axes, which is much quicker than axes for each, in their proportions.

    Args:
        images: uint8 [H, W, 3], or [H, W] in any units.
        captions: above them.
        columns: how many have room.
        drawing: arguments of ``imshow``; grey from 0 to 255 if there are none.
    """
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        height, width = (0.9 * side / max(image.shape[:2]) for side in image.shape[:2])
        left, bottom = number + (0.9 - width) / 2, (0.9 - height) / 2
        axes.imshow(
            image,
            extent=(left, left + width, bottom, bottom + height),
            **(drawing or {"cmap": "gray", "vmin": 0, "vmax": 255}),
        )
        axes.text(number + 0.45, 0.93, drawable(caption), ha="center", va="bottom", fontsize=8)
    axes.set(xlim=(0, columns - 0.1), ylim=(0, 0.9), xticks=[], yticks=[], frame_on=False)


def drawable_image(image_HWC: Array) -> Array:
    """What can be drawn of an image of any channels: uint8 [H, W, 3], of its first three, or [H, W], of its first.

    Values of 16 bits are spread from the least to the largest.
    """
    channels = image_HWC.shape[2]
    shown = image_HWC[..., :3] if channels >= 3 else image_HWC[..., 0]
    if shown.dtype == np.uint8:
        return shown
    low, high = int(shown.min()), int(shown.max())
    return ((shown.astype(np.int64) - low) * 255 // max(1, high - low)).astype(np.uint8)


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(figure))


def png(figure: Any, *, dpi: int = _DPI) -> bytes:
    """A figure as PNG, on which nothing is taken for mathematics or TeX."""
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_usetex(False)
    buffer = io.BytesIO()
    # Labels of ticks come into being when they are drawn.
    with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}):
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def drawable(text: str, most: int = 120) -> str:
    """A text of anybody's, line by line, as the font can draw it: without control characters and not too long."""
    return "\n".join(_drawable(shortened(plain(line), most)) for line in text.split("\n"))


def drawable_names(names: Sequence[str], most: int) -> list[str]:
    """Names of anybody's as single lines of at most so many letters."""
    return [_drawable(shortened(plain(name), most)) for name in names]


def _drawable(line: str) -> str:
    known = _characters()
    return line if line.isascii() else "".join(c if ord(c) in known else _NO_GLYPH for c in line)


@functools.cache
def _characters() -> frozenset[int]:
    """Those that the font has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties())).get_charmap())
