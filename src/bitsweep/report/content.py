"""The content of a report, whatever it is written to: rows, columns, Pareto fronts, and what explains the figures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsweep.config.requirement import NOTHING, Requirements
from bitsweep.metrics import METRICS
from bitsweep.report.row import SHOWN_GROUPS, Baseline, Race, Row
from bitsweep.report.verdict import verdict_of
from bitsweep.text import some

if TYPE_CHECKING:
    import pandas

#: As many cells are named beside sentences that they share.
_MOST_NAMED = 6


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """The whole content of a report.

    Attributes:
        ui_url: of the experiment in the MLflow UI: that of the server, or as ``bitsweep ui`` starts it.
        require: what cells must keep.
        races: final races, each of cells by their choices.
        no_race: why there is none where there should be; empty otherwise.
    """

    sweep_id: str
    command: str
    started: datetime
    seconds: float
    rows: list[Row]
    baselines: list[Baseline]
    environment: dict[str, Any]
    tracking_uri: str
    ui_url: str
    require: Requirements = NOTHING
    races: tuple[Race, ...] = ()
    no_race: str = ""

    @property
    def measured(self) -> list[Row]:
        """The rows with figures."""
        return [row for row in self.rows if row.measured]

    def raced(self, races: Sequence[Race], reason: str) -> "SweepReport":
        """The same with final races.

        Args:
            reason: why one could not be held.
        """
        rows = [
            replace(row, final=next((time for race in races if (time := race.time_of(row.cell))), None))
            for row in self.rows
        ]
        return replace(self, rows=rows, races=tuple(races), no_race=reason)

    def name_of(self, row: Row) -> str:
        """The name of a row, with what tells it from others of this name on the same data."""
        return name_among(self.rows, row)

    def records(self) -> list[dict[str, str | float]]:
        """A record a cell: choices and knobs, how it ended, and its metrics by the names of ``docs/measurement.md``.

        All have the same keys in the same order; "" stands for what a cell does not have.
        """
        choices = list(dict.fromkeys(name for row in self.rows for name in row.cell))
        metrics = sorted({name for row in self.rows for name in row.metrics})
        return [
            {
                **{name: row.value(name) for name in choices},
                "status": row.status,
                "reason": row.reason,
                "verdict": row.verdict,
                **({"requirements": stands(row, self.require)} if self.require.limits else {}),
                "flags": "; ".join(row.flags),
                "scheme": row.scheme,
                "run_id": row.run_id,
                "command": row.command,
                **{name: row.metrics.get(name, "") for name in metrics},
                **({"final_p50_ms": row.final.p50_ms if row.final else ""} if self.races else {}),
            }
            for row in self.rows
        ]

    def frame(self) -> "pandas.DataFrame":
        """The records as a table of pandas, a row a cell; metrics are numbers, NaN where a cell has none.

        The metrics that tables have a column for are there in any case.
        """
        import pandas

        frame = pandas.DataFrame(self.records())
        titled = [name for name, metric in METRICS.items() if metric.title]
        usual = [each for name in titled for each in (name, f"{name}_low", f"{name}_high") if each in METRICS]
        frame = frame.reindex(columns=list(dict.fromkeys([*frame.columns, *usual])))
        named = {"final_p50_ms", *usual}.union(*(row.metrics for row in self.rows))
        metrics = [name for name in frame.columns if name in named]
        frame[metrics] = frame[metrics].apply(pandas.to_numeric)
        return frame

    @property
    def varying_choices(self) -> list[str]:
        """Groups and knobs to show: the usual ones, those in which cells differ, and the device if one was chosen."""
        chosen = [knob for row in self.rows for knob in row.shown]
        return list(dict.fromkeys([*SHOWN_GROUPS, *distinguishing(self.rows), *chosen]))


def name_among(rows: Sequence[Row], row: Row) -> str:
    """The name of one of several rows, with what tells it from others of this name on the same data."""
    alike = [each for each in rows if (each.name, each.cell["dataset"]) == (row.name, row.cell["dataset"])]
    knobs = [f"{knob}={value}" for knob in distinguishing(alike) if (value := row.value(knob))]
    return f"{row.name} ({', '.join(knobs)})" if knobs else row.name


def distinguishing(rows: Sequence[Row]) -> list[str]:
    """Groups that differ between rows, and knobs that do between rows with the same choice in the knob's group.

    Where all rows with ``method=gpfq`` have the same ``method.radius``, the radius says nothing beyond the method.
    """
    names = dict.fromkeys(name for row in rows for name in row.cell)
    values: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        for name in names:
            group, dot, _ = name.partition(".")
            values.setdefault((name, row.cell.get(group, "") if dot else ""), set()).add(row.value(name))
    return [name for name in names if any(len(found) > 1 for (of, _), found in values.items() if of == name)]


# --------------------------------------------------------------------------- figures as text


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


def stands(row: Row, require: Requirements) -> str:
    """How a row stands to the limits; empty where there are none, or no figures."""
    return str(verdict_of(row, require)) if require.limits and row.measured else ""


def confidence(rows: Sequence[Row]) -> str:
    """How sure intervals are, e.g. ``95 %``; in general words where rows differ."""
    levels = {row.confidence for row in rows}
    return f"{100 * levels.pop():g} %" if len(levels) == 1 else "interval"


# --------------------------------------------------------------------------- conclusions


def findings(report: SweepReport) -> list[tuple[str, str, tuple[Path, ...]]]:
    """Sentences that explain figures, as the cells, their sentences, and the pictures that these may name."""
    named: dict[tuple[str, tuple[Path, ...]], list[str]] = {}
    choices = report.varying_choices
    for row in report.measured:
        if row.findings:
            untimed = "" if "latency_p50_ms" in row.metrics else "not timed"
            text = "; ".join(filter(None, (row.verdict or untimed, *row.findings)))
            named.setdefault((text, row.pictures if ".png" in text else ()), []).append(
                " ".join(filter(None, map(row.value, choices)))
            )
    return [(some(names, _MOST_NAMED), text, pictures) for (text, pictures), names in named.items()]


def environment_lines(report: SweepReport) -> list[tuple[str, str]]:
    """Machine and versions, as name and value."""
    about = report.environment
    cpu = about.get("cpu", {})
    share = about.get("cpu_quota")
    quota = f", a quota of {share:g} CPU{'' if share == 1 else 's'}" if share else ""
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
