"""The table that ends a sweep in the terminal."""

import re

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from bitsweep.report.advice import recommendations
from bitsweep.report.columns import columns
from bitsweep.report.content import SweepReport
from bitsweep.text import plain

_STYLE = {"faster": "green", "slower": "red", "meets": "green"}
#: Characters in a line of what cells miss.
_WIDEST = 26
#: What is left out where there is no room.
_INTERVAL = re.compile(r" \[[^]]*\]")
_SHORT = {"not distinguishable": "unclear"}


def console() -> Console:
    """Where tables are printed: as wide as the terminal, and wide where there is none."""
    found = Console()
    return found if found.is_terminal else Console(width=160)


def table(report: SweepReport, *, width: int) -> RenderableType:
    """One line a cell; below it the cells without figures and why, and what to deploy.

    Args:
        width: of the terminal; where the whole table does not fit, it has no intervals.
    """
    parts: list[RenderableType] = [_figures(report, width)] if report.measured else []
    alike: dict[tuple[str, str], list[str]] = {}
    for row in report.rows:
        if row.not_run or not row.measured:
            alike.setdefault((row.status, plain(row.reason or "it was not run")), []).append(plain(report.name_of(row)))
    for (status, why), names in alike.items():
        for name in names:
            style = "red" if status == "failed" else "yellow"
            told = why if name == names[0] else "for the same reason"
            parts.append(Text.assemble((f"{status}  ", style), f"{name}: {told}"))
    parts += [Text(plain(paragraph)) for paragraph in recommendations(report)]
    return Group(*parts)


def _figures(report: SweepReport, width: int) -> Table:
    whole, endless = _filled(report, narrow=False), Console(width=10_000)
    fits = Measurement.get(endless, endless.options, whole).maximum <= width
    return whole if fits else _filled(report, narrow=True)


def _filled(report: SweepReport, *, narrow: bool) -> Table:
    figures = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    alike = {group for group in report.varying_choices if len({row.value(group) for row in report.rows}) == 1}
    groups = [
        group
        for group in report.varying_choices
        if group not in alike & ({"method", "backend"} if narrow else {"method"})
    ]
    for group in groups:
        figures.add_column(Text(plain(group)), overflow="fold")
    shown = [column for column in columns(report) if column.narrow or not narrow]
    for column in shown:
        is_text = column.title in ("flags", "verdict", "requirements")
        figures.add_column(
            Text(column.narrow if narrow else column.title),
            justify="left" if is_text else "right",
            overflow="fold",
            max_width=_WIDEST if column.title == "requirements" else None,
        )
    for row in report.measured:
        cells = [Text(plain(row.value(group))) for group in groups]
        for column in shown:
            text = plain(column.text(row))
            style = _STYLE.get(text, "yellow" if column.title == "flags" else "")
            cells.append(Text(_INTERVAL.sub("", _SHORT.get(text, text)) if narrow else text, style=style))
        figures.add_row(*cells)
    return figures
