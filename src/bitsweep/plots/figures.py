"""Figures to draw on, and how they become files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitsweep.results import Array

#: Colours of the network before and after it was compressed, wherever both are shown.
BEFORE, AFTER = "0.6", "C0"
_DPI = 100
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
    figure.suptitle(title, fontsize=11, y=1 - 0.3 * _TITLE / down, va="top")
    return figure, list(axes.ravel())


def label(axes: Any, title: str, x: str, y: str, *, legend: bool = False) -> None:
    """Give axes a title, a name with unit in each direction, a grid, and perhaps a legend."""
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    if legend:
        axes.legend(fontsize=7)


def tiles(axes: Any, images: Sequence[Array], captions: Sequence[str], *, columns: int, **drawing: Any) -> None:
    """Draw images of one size side by side in one pair of axes, which is much quicker than axes for each.

    Args:
        images: uint8 [H, W, 3], or [H, W] in any units.
        captions: above them.
        columns: how many have room.
        drawing: arguments of ``imshow``; grey from 0 to 255 if there are none.
    """
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        axes.imshow(
            image, extent=(number, number + 0.9, 0, 0.9), **(drawing or {"cmap": "gray", "vmin": 0, "vmax": 255})
        )
        axes.text(number + 0.45, 0.93, caption, ha="center", va="bottom", fontsize=8)
    axes.set(xlim=(0, columns - 0.1), ylim=(0, 0.9), xticks=[], yticks=[], frame_on=False)


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)


def shortened(names: Sequence[str], most: int) -> list[str]:
    """Names of at most so many letters, the middle of longer ones left out."""
    return [name if len(name) <= most else f"{name[: most // 2]}…{name[-(most - most // 2 - 1) :]}" for name in names]
