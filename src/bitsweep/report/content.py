"""The content of a report, whatever it is written to: rows, columns, Pareto fronts, and what explains the figures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bitsweep.metrics import METRICS, Metric

if TYPE_CHECKING:
    import pandas

RowStatus = Literal["finished", "reused", "lowered", "failed", "skipped", "interrupted"]
#: Config groups that every table shows; the others only where they differ between cells.
SHOWN_GROUPS = ("model", "method", "precision", "backend")


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
        shown: knobs that its name shows.
        confidence: how sure its intervals are.
        batch: images of a batch whose latency it has.
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
    shown: tuple[str, ...] = ()
    confidence: float = 0.95
    batch: int = 1

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
        return " ".join([*(self.cell[group] for group in SHOWN_GROUPS if group != "backend"), self.engine])

    @property
    def engine(self) -> str:
        """The engine, and the device that was asked for."""
        return " on ".join([self.cell["backend"], *(self.cell[knob] for knob in self.shown if knob in self.cell)])


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

    def name_of(self, row: Row) -> str:
        """The name of a row, with what tells it from others of this name on the same data."""
        alike = [each for each in self.rows if (each.name, each.cell["dataset"]) == (row.name, row.cell["dataset"])]
        knobs = [f"{knob}={row.cell[knob]}" for knob in distinguishing(alike) if knob in row.cell]
        return f"{row.name} ({', '.join(knobs)})" if knobs else row.name

    def records(self) -> list[dict[str, str | float]]:
        """A record a cell: choices and knobs, how it ended, and its metrics by the names of ``docs/measurement.md``.

        All have the same keys in the same order; "" stands for what a cell does not have.
        """
        choices = list(dict.fromkeys(name for row in self.rows for name in row.cell))
        metrics = sorted({name for row in self.rows for name in row.metrics})
        return [
            {
                **{name: row.cell.get(name, "") for name in choices},
                "status": row.status,
                "reason": row.reason,
                "verdict": row.verdict,
                "flags": "; ".join(row.flags),
                "scheme": row.scheme,
                "run_id": row.run_id,
                "command": row.command,
                **{name: row.metrics.get(name, "") for name in metrics},
            }
            for row in self.rows
        ]

    def frame(self) -> "pandas.DataFrame":
        """The records as a table of pandas, a row a cell; metrics are numbers, NaN where a cell has none."""
        import pandas

        frame = pandas.DataFrame(self.records())
        metrics = [name for name in frame.columns if name in METRICS]
        frame[metrics] = frame[metrics].apply(pandas.to_numeric)
        return frame

    @property
    def varying_choices(self) -> list[str]:
        """Groups and knobs to show: the usual ones, those in which cells differ, and the device if one was chosen."""
        chosen = [knob for row in self.rows for knob in row.shown]
        return list(dict.fromkeys([*SHOWN_GROUPS, *distinguishing(self.rows), *chosen]))


def distinguishing(rows: Sequence[Row]) -> list[str]:
    """Groups that differ between rows, and knobs that do between rows with the same choice in the knob's group.

    Where all rows with ``method=gpfq`` have the same ``method.radius``, the radius says nothing beyond the method.
    """
    names = dict.fromkeys(name for row in rows for name in row.cell)
    values: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        for name in names:
            group, dot, _ = name.partition(".")
            values.setdefault((name, row.cell.get(group, "") if dot else ""), set()).add(row.cell.get(name, ""))
    return [name for name in names if any(len(found) > 1 for (of, _), found in values.items() if of == name)]


# --------------------------------------------------------------------------- columns


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


def shown(row: Row, name: str) -> str:
    """A metric of a row as text; empty where there is none."""
    return METRICS[name].shown(row.metrics[name]) if name in row.metrics else ""


def interval(row: Row, name: str) -> str:
    """A metric with its interval where it has one."""
    value, low, high = (shown(row, each) for each in (name, f"{name}_low", f"{name}_high"))
    return f"{value} [{low}, {high}]" if value and low else value


def ratio(row: Row) -> str:
    """The speed-up with its interval, in as many digits as it takes to see that it is not 1."""
    values = [row.metrics[f"speedup{end}"] for end in ("", "_low", "_high") if f"speedup{end}" in row.metrics]
    if len(values) < 3:
        return f"{values[0]:.2f}x" if values else ""
    shown_apart = values[:2] if row.verdict == "faster" else values[::2] if row.verdict == "slower" else []
    decimals = next((n for n in range(2, 6) if all(round(value, n) != 1 for value in shown_apart)), 6)
    value, low, high = (f"{value:.{decimals}f}" for value in values)
    return f"{value}x [{low}, {high}]"


def confidence(rows: Sequence[Row]) -> str:
    """How sure intervals are, e.g. ``95 %``; in general words where rows differ."""
    levels = {row.confidence for row in rows}
    return f"{100 * levels.pop():g} %" if len(levels) == 1 else "interval"


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that any of the rows has a figure for."""
    return [column for column in all_columns(confidence(rows)) if any(map(column.text, rows))]


def all_columns(sure: str) -> tuple[Column, ...]:
    """All that a table can have.

    Args:
        sure: how sure intervals are, for titles.
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
        Column(title="verdict", text=lambda row: row.verdict, metric="speedup", narrow="verdict"),
        figures("size_mb", "MB"),
        figures("peak_rss_mb"),
        figures("device_p50_ms"),
        figures("peak_device_mb"),
        Column(title="flags", text=lambda row: ", ".join(row.flags), narrow="flags"),
    )


def _about(metric: Metric) -> str:
    better = f"{metric.better} is better" if metric.better else ""
    return " ".join([metric.text, f"({', '.join(filter(None, (metric.unit, better)))})"])


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
    return " ".join(row.cell[group] for group in report.varying_choices if group in row.cell)


def environment_lines(report: SweepReport) -> list[tuple[str, str]]:
    """Machine and versions, as name and value."""
    about = report.environment
    cpu = about.get("cpu", {})
    quota = f", a quota of {about['cpu_quota']:g} CPUs" if about.get("cpu_quota") else ""
    versions = ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())
    return [
        ("CPU", f"{cpu.get('model', '?')}, {cpu.get('isa', '?')}, {about.get('physical_cores', '?')} cores{quota}"),
        *([("GPU", f"{gpu['model']}, {gpu['architecture']}")] if (gpu := about.get("gpu")) else []),
        ("memory", f"{about.get('memory_gb', '?')} GB"),
        ("platform", f"{about.get('platform', '?')}, Python {about.get('python', '?')}"),
        ("versions", versions),
        ("commit", str(about.get("commit", "?"))),
        ("tracking", report.tracking_uri),
    ]
