"""The columns of the table of cells."""

from collections.abc import Callable
from dataclasses import dataclass

from bitsweep.config.requirement import Requirements
from bitsweep.metrics import METRICS, Metric
from bitsweep.report.content import SweepReport, confidence, interval, ratio, shown, stands
from bitsweep.report.row import Row


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of figures.

    Attributes:
        text: how a row's figure is shown; empty where there is none.
        metric: what the column is sorted by.
        about: what the figure means; empty for a column of words.
        narrow: title where there is no room for intervals; empty for a column that is left out there.
    """

    title: str
    text: Callable[[Row], str]
    metric: str = ""
    about: str = ""
    narrow: str = ""


def columns(report: SweepReport) -> list[Column]:
    """The columns that any measured row has a figure for."""
    rows = report.measured
    return [column for column in all_columns(confidence(rows), report.require) if any(map(column.text, rows))]


def all_columns(sure: str, require: Requirements) -> tuple[Column, ...]:
    """All that a table can have.

    Args:
        sure: how sure intervals are, for titles.
        require: what cells must keep.
    """

    def figures(name: str, narrow: str = "") -> Column:
        metric = METRICS[name]
        return Column(
            title=metric.title, text=lambda row: shown(row, name), metric=name, about=_about(metric), narrow=narrow
        )

    def with_interval(name: str, text: Callable[[Row], str], narrow: str) -> Column:
        metric = METRICS[name]
        title = f"{metric.title} [{sure}]"
        return Column(title=title, text=text, metric=name, about=_about(metric), narrow=narrow)

    return (
        with_interval("top1", lambda row: interval(row, "top1"), "top-1"),
        figures("top1_drop_pp", "drop"),
        figures("flips"),
        figures("latency_p50_ms", "p50 ms"),
        with_interval("speedup", ratio, "speed"),
        Column(title="verdict", text=lambda row: row.verdict, narrow="verdict"),
        figures("size_mb", "MB"),
        figures("peak_rss_mb"),
        figures("device_p50_ms"),
        figures("peak_device_mb"),
        Column(title="requirements", text=lambda row: stands(row, require), narrow="requirements"),
        Column(title="flags", text=lambda row: ", ".join(row.flags), narrow="flags"),
    )


def _about(metric: Metric) -> str:
    better = f"{metric.better} is better" if metric.better else ""
    return " ".join([metric.text, f"({', '.join(filter(None, (metric.unit, better)))})"])
