"""The content of a report, whatever it is written to: rows, columns, Pareto fronts, and what explains the figures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

RowStatus = Literal["finished", "reused", "lowered", "failed", "skipped", "interrupted"]
#: Config groups that every table shows; the others only where they differ between cells.
SHOWN_AXES = ("model", "method", "precision", "backend")
#: Knob that says what an engine with kernels for several processors ran on.
DEVICE = "backend.device"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A cell and how it ended.

    Attributes:
        cell: config group -> choice, and the knobs that were overridden.
        metrics: by the names of ``docs/measurement.md``; any may be missing.
        verdict: on the speed-up; empty where nothing was timed against fp32.
        findings: sentences that explain the figures.
        command: reproduces this cell alone.
        pictures: PNG files under the folder of the report.
    """

    cell: dict[str, str]
    status: RowStatus
    reason: str = ""
    log_tail: str = ""
    metrics: dict[str, float]
    flags: tuple[str, ...] = ()
    verdict: str = ""
    findings: tuple[str, ...] = ()
    scheme: str = ""
    command: str
    run_id: str = ""
    pictures: tuple[Path, ...] = ()

    @property
    def measured(self) -> bool:
        """Whether there are figures."""
        return self.status in ("finished", "reused", "lowered")

    @property
    def not_run(self) -> bool:
        """Whether no engine ran it; a lowered one has figures all the same."""
        return self.status in ("lowered", "skipped", "interrupted")

    @property
    def name(self) -> str:
        """Model, method, precision and engine."""
        return " ".join([*(self.cell[axis] for axis in SHOWN_AXES if axis != "backend"), self.engine])

    @property
    def engine(self) -> str:
        """The engine, and the device that was asked for."""
        return " on ".join(self.cell[name] for name in ("backend", DEVICE) if name in self.cell)


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A trained fp32 model that cells of the sweep rest on.

    Attributes:
        pictures: PNG files under the folder of the report.
    """

    name: str
    run_id: str
    metrics: dict[str, float]
    seconds: float
    pictures: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """The whole content of a report.

    Attributes:
        compare_url: path of the comparison page under the address of the MLflow UI.
    """

    sweep_id: str
    command: str
    started: datetime
    seconds: float
    rows: list[Row]
    baselines: list[Baseline]
    environment: dict[str, Any]
    tracking_uri: str
    compare_url: str

    @property
    def measured(self) -> list[Row]:
        """The rows with figures."""
        return [row for row in self.rows if row.measured]

    @property
    def varying_choices(self) -> list[str]:
        """Groups and knobs to show: the usual ones, those in which cells differ, and the device if one was chosen."""
        chosen = [DEVICE] if any(DEVICE in row.cell for row in self.rows) else []
        return list(dict.fromkeys([*SHOWN_AXES, *telling(self.rows), *chosen]))


def telling(rows: Sequence[Row]) -> list[str]:
    """Groups that differ between rows, and knobs that do between rows with the same choice in the knob's group.

    Where all rows with ``method=gpfq`` have the same ``method.radius``, the radius says nothing beyond the method.
    """
    names = dict.fromkeys(name for row in rows for name in row.cell)
    values: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        for name in names:
            axis, dot, _ = name.partition(".")
            values.setdefault((name, row.cell.get(axis, "") if dot else ""), set()).add(row.cell.get(name, ""))
    return [name for name in names if any(len(found) > 1 for (of, _), found in values.items() if of == name)]


# --------------------------------------------------------------------------- columns


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of figures.

    Attributes:
        text: how a row's figure is shown; empty where there is none.
        metric: what the column is sorted by.
        narrow: title where there is no room for intervals; empty for a column that is left out there.
    """

    title: str
    text: Callable[[Row], str]
    metric: str
    narrow: str = ""


def _number(metric: str, form: str, scale: float = 1) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        return format(scale * row.metrics[metric], form).rstrip(".") if metric in row.metrics else ""

    return text


def interval(metric: str, form: str, scale: float = 1, suffix: str = "") -> Callable[[Row], str]:
    """Shows a metric, times ``scale``, with its interval where it has one."""
    parts = [_number(name, form, scale) for name in (metric, f"{metric}_low", f"{metric}_high")]

    def text(row: Row) -> str:
        value, low, high = (part(row) for part in parts)
        return f"{value}{suffix} [{low}, {high}]" if value and low else value and f"{value}{suffix}"

    return text


COLUMNS = (
    Column(title="top-1 % [95 %]", text=interval("top1", ".2f", 100), metric="top1", narrow="top-1"),
    Column(title="drop pp", text=_number("top1_drop_pp", "+.2f"), metric="top1_drop_pp", narrow="drop"),
    Column(title="flips", text=_number("flips", ".0f"), metric="flips"),
    Column(title="p50 ms", text=_number("latency_p50_ms", "#.3g"), metric="latency_p50_ms", narrow="p50 ms"),
    Column(title="speed-up [95 %]", text=interval("speedup", ".2f", suffix="x"), metric="speedup", narrow="speed"),
    Column(title="verdict", text=lambda row: row.verdict, metric="speedup", narrow="verdict"),
    Column(title="size MB", text=_number("size_mb", "#.3g"), metric="size_mb", narrow="MB"),
    Column(title="memory MB", text=_number("peak_rss_mb", ".0f"), metric="peak_rss_mb"),
    Column(title="device ms", text=_number("device_p50_ms", "#.3g"), metric="device_p50_ms"),
    Column(title="device MB", text=_number("peak_device_mb", ".0f"), metric="peak_device_mb"),
    Column(title="flags", text=lambda row: ", ".join(row.flags), metric="", narrow="flags"),
)


def shown_columns(report: SweepReport) -> list[Column]:
    """The columns that any row has a figure for."""
    return [column for column in COLUMNS if any(map(column.text, report.measured))]


# --------------------------------------------------------------------------- conclusions


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, gain) points that no other beats, from the cheapest on.

    A point is beaten by one that costs no more and gains no less, and is better in one of the two.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def findings(report: SweepReport) -> list[tuple[str, str]]:
    """Sentences that explain figures, as the cell and its sentences."""
    shown = [row for row in report.measured if row.findings]
    return [(_full_name(report, row), "; ".join((row.verdict or "not timed", *row.findings))) for row in shown]


def _full_name(report: SweepReport, row: Row) -> str:
    return " ".join(row.cell[axis] for axis in report.varying_choices if axis in row.cell)


def environment_lines(report: SweepReport) -> list[tuple[str, str]]:
    """Machine and versions, as name and value."""
    about = report.environment
    cpu = about.get("cpu", {})
    versions = ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())
    return [
        ("CPU", f"{cpu.get('model', '?')}, {cpu.get('isa', '?')}, {about.get('physical_cores', '?')} cores"),
        *([("GPU", f"{gpu['model']}, {gpu['architecture']}")] if (gpu := about.get("gpu")) else []),
        ("memory", f"{about.get('memory_gb', '?')} GB"),
        ("platform", f"{about.get('platform', '?')}, Python {about.get('python', '?')}"),
        ("versions", versions),
        ("commit", str(about.get("commit", "?"))),
        ("tracking", report.tracking_uri),
    ]
