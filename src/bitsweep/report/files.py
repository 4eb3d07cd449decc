"""report.md, report.html and cells.csv."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitsweep.metrics import METRICS
from bitsweep.report import templating
from bitsweep.report.advice import recommendations
from bitsweep.report.choice import recommended_rows
from bitsweep.report.columns import Column, columns
from bitsweep.report.content import SweepReport, environment_lines, findings
from bitsweep.report.interactive import plotted
from bitsweep.report.pictures import Picture, pictures
from bitsweep.report.row import Baseline, Row
from bitsweep.runtime.store import Store
from bitsweep.text import counted, write_csv


def write(report: SweepReport, folder: Path, store: Store | None = None) -> list[Path]:
    """Write the report's files into a folder, which is created; returns their paths, the pictures' included.

    Args:
        store: where pictures are kept that another report may show.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = pictures(report, store)
    paths = [folder / picture.name for picture in drawn if picture.png]
    for picture in drawn:
        if picture.png:
            (folder / picture.name).write_bytes(picture.png)
    content = _content(report, drawn)
    texts = []
    for name, environment in (("report.md", templating.markdown(folder)), ("report.html", templating.html(folder))):
        environment.filters["described"] = _described
        texts.append(folder / name)
        texts[-1].write_text(environment.get_template(f"{name}.jinja").render(content), encoding="utf-8")
    records = report.records()
    write_csv([list(records[0]) if records else [], *(each.values() for each in records)], folder / "cells.csv")
    return [*texts, folder / "cells.csv", *paths]


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """A cell of the table.

    Attributes:
        kind: how it looks; empty for a choice.
        value: what it is sorted and filtered by, in the unit that is shown; empty to sort by the text.
    """

    text: str
    kind: str = ""
    value: float | str = ""


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A row of the table.

    Attributes:
        number: of the cell among those that were measured.
        recommended: whether it is what to deploy.
        run_url: of its run in the MLflow UI; empty where there is none.
        pictures: whether there are any.
    """

    number: int
    scheme: str
    cells: list[_Cell]
    recommended: bool
    run_url: str
    pictures: bool


def _content(report: SweepReport, drawn: list[Picture]) -> dict[str, Any]:
    """What both templates show."""
    groups, shown, recommended = report.varying_choices, columns(report), recommended_rows(report)
    rows = [
        _line(number, row, groups, shown, report=report, recommended=any(row is each for each in recommended))
        for number, row in enumerate(report.measured)
    ]
    return {
        "report": report,
        "summary": _summary(report),
        "recommendations": recommendations(report),
        "recommended": [f"deploy {report.name_of(row)}" for row in recommended],
        "groups": groups,
        "columns": shown,
        "titles": [*groups, *(column.title for column in shown)],
        "rows": rows,
        "linked": any(row.run_url or row.pictures for row in rows),
        "plotted": plotted(report) if rows else None,
        "findings": findings(report),
        "drawn": drawn,
        "illustrated": [
            (number, " ".join(map(row.value, groups)), row.pictures)
            for number, row in enumerate(report.measured)
            if row.pictures
        ],
        "not_run": [(report.name_of(row), _why(row)) for row in report.rows if row.not_run],
        "failed": [row for row in report.rows if row.status == "failed"],
        "environment": environment_lines(report),
        "commands": "\n".join(row.command for row in report.rows),
    }


def _line(
    number: int, row: Row, groups: list[str], shown: list[Column], *, report: SweepReport, recommended: bool
) -> _Line:
    choices = [_Cell(text=row.value(group)) for group in groups]
    figures = [
        _Cell(
            text=column.text(row),
            kind="figure" if column.about else row.verdict if column.title == "verdict" else column.title,
            value=METRICS[column.metric].scale * row.metrics[column.metric] if column.metric in row.metrics else "",
        )
        for column in shown
    ]
    return _Line(
        number=number,
        scheme=row.scheme,
        cells=[*choices, *figures],
        recommended=recommended,
        run_url=f"{report.ui_url}/runs/{row.run_id}" if row.run_id else "",
        pictures=bool(row.pictures),
    )


def _summary(report: SweepReport) -> str:
    counts = ", ".join(
        f"{count} {status}"
        for status in ("finished", "reused", "lowered", "failed", "skipped", "interrupted")
        if (count := sum(row.status == status for row in report.rows))
    )
    started = report.started.strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{counted(len(report.rows), 'cell')}: {counts or 'none'}. Started {started}, took {report.seconds:.0f} s."


def _why(row: Row) -> str:
    return row.reason or "the sweep ended before it was run; the same command goes on where it stopped"


def _described(baseline: Baseline) -> str:
    top1 = f"top-1 {100 * baseline.metrics['top1']:.2f} %, " if "top1" in baseline.metrics else ""
    return f"{baseline.name}: {top1}trained in {baseline.seconds:.0f} s"
