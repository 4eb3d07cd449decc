"""The table that ends a sweep in the terminal."""

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bitsweep.report.content import COLUMNS, SweepReport, recommendations

_VERDICT_STYLE = {"faster": "green", "slower": "red"}


def table(report: SweepReport) -> RenderableType:
    """One line a cell; below it the cells without figures and why, and what to deploy."""
    parts: list[RenderableType] = []
    axes = [
        axis for axis in report.varying_axes if axis != "method" or len({r.cell["method"] for r in report.rows}) > 1
    ]
    if report.measured:
        figures = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left")
        shown = [column for column in COLUMNS if any(column.text(row) for row in report.measured)]
        for axis in axes:
            figures.add_column(axis, overflow="fold")
        for column in shown:
            text_column = column.title in ("flags", "verdict")
            figures.add_column(column.title, justify="left" if text_column else "right", overflow="fold")
        for row in report.measured:
            cells = [Text(row.cell.get(axis, "")) for axis in axes]
            for column in shown:
                text = column.text(row)
                cells.append(Text(text, style=_VERDICT_STYLE.get(text, "yellow" if column.title == "flags" else "")))
            figures.add_row(*cells)
        parts.append(figures)
    for row in report.rows:
        if not row.measured:
            style = "red" if row.status == "failed" else "yellow"
            parts.append(Text.assemble((f"{row.status}  ", style), f"{row.name}: {row.reason or 'it was not run'}"))
    parts += [Text(paragraph) for paragraph in recommendations(report)]
    return Group(*parts)
