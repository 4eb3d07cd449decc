"""A comparison as a table for the terminal and as Markdown."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bitsweep.comparison.content import ComparedCell, Comparison
from bitsweep.metrics import METRICS
from bitsweep.report.templating import escaped
from bitsweep.text import plain

_TITLES = ("cell", "became", "figure", "old", "new", "change")
_STYLE = {"worse": "red", "gone": "red", "better": "green", "undecided": "yellow", "reused": "yellow"}


def terminal(comparison: Comparison) -> RenderableType:
    """A line a figure of every cell; below it which were measured once, and how many cells became what."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in _TITLES:
        table.add_column(title, overflow="fold", justify="right" if title in ("old", "new") else "left")
    for line in _lines(comparison):
        table.add_row(*(Text(plain(text), style=_STYLE.get(text, "")) for text in line))
    return Group(table, *(Text(plain(line)) for line in (comparison.reused, comparison.summary) if line))


def markdown(comparison: Comparison) -> str:
    """The same as a table of Markdown."""
    rows = [_TITLES, *([escaped(text) for text in line] for line in _lines(comparison))]
    table = ["| " + " | ".join(row) + " |" for row in rows]
    table.insert(1, "|" + "---|" * len(_TITLES))
    notes = ["", escaped(comparison.reused)] if comparison.reused else []
    return "\n".join([f"# {escaped(comparison.summary)}", "", *table, *notes, ""])


def _lines(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    for cell in comparison.cells:
        first: tuple[str, str] = (cell.name, cell.became)
        for line in list(_figures_of(cell)) or [("", "", "", cell.reason)]:
            yield (*first, *line)
            first = ("", "")


def _figures_of(cell: ComparedCell) -> Iterator[tuple[str, str, str, str]]:
    """Figure, old value, new value, and what became of it."""
    for judged in cell.figures:
        old, new = judged.shown
        yield judged.title, old, new, f"{judged.verdict}: {judged.text}"
    if cell.figures:
        return
    reason = cell.reason
    for name in ("top1", "latency_p50_ms", "size_mb"):
        old, new = (
            METRICS[name].shown(side.metrics[name]) if side and name in side.metrics else ""
            for side in (cell.old, cell.new)
        )
        if old or new:
            yield METRICS[name].title, old, new, reason
            reason = ""
