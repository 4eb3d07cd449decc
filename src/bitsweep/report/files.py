"""report.md, report.html and cells.csv."""

import base64
import csv
import html
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from bitsweep.report.advice import recommendations
from bitsweep.report.content import Baseline, Row, SweepReport, environment_lines, findings, shown_columns
from bitsweep.report.pictures import Picture, pictures

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.87rem; }
th, td { padding: 0.3rem 0.5rem; border-bottom: 1px solid #8884; text-align: left; }
td.figure { text-align: right; white-space: nowrap; }
#cells th { cursor: pointer; user-select: none; }
#cells th[aria-sort=ascending]::after { content: " \\25b2"; }
#cells th[aria-sort=descending]::after { content: " \\25bc"; }
.faster { color: #188038; } .slower { color: #c5221f; } .flags { color: #b06000; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; background: white; }
figcaption { font-size: 0.87rem; opacity: 0.8; }
details { margin: 0.3rem 0; } summary { cursor: pointer; }
pre { background: #8881; padding: 0.6rem; overflow-x: auto; font-size: 0.8rem; }
code { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
"""
_SORT = """
for (const head of document.querySelectorAll("#cells th")) head.onclick = () => {
  const body = document.querySelector("#cells tbody"), column = head.cellIndex;
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const rank = (a, b) => isNaN(a) || isNaN(b) || a === "" || b === "" ? a.localeCompare(b) : a - b;
  body.append(...[...body.rows].sort((a, b) => (up ? 1 : -1) * rank(value(a), value(b))));
};
"""


def write(report: SweepReport, folder: Path) -> list[Path]:
    """Write the report's files into a folder, which is created; returns their paths, the pictures' included."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = pictures(report)
    paths = [folder / picture.name for picture in drawn]
    for path, picture in zip(paths, drawn, strict=True):
        path.write_bytes(picture.png)
    texts = {"report.md": _markdown(report, drawn), "report.html": _html(report, drawn, folder)}
    for name, text in texts.items():
        (folder / name).write_text(text)
    _write_csv(report, folder / "cells.csv")
    return [*(folder / name for name in texts), folder / "cells.csv", *paths]


def _write_csv(report: SweepReport, path: Path) -> None:
    groups = list(dict.fromkeys(name for row in report.rows for name in row.cell))
    metrics = sorted({name for row in report.rows for name in row.metrics})
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*groups, "status", "reason", "verdict", "flags", "scheme", "run_id", "command", *metrics])
        for row in report.rows:
            about = [row.status, row.reason, row.verdict, "; ".join(row.flags), row.scheme, row.run_id, row.command]
            figures = [repr(row.metrics[name]) if name in row.metrics else "" for name in metrics]
            writer.writerow([*(row.cell.get(group, "") for group in groups), *about, *figures])


# --------------------------------------------------------------------------- Markdown


def _markdown(report: SweepReport, drawn: list[Picture]) -> str:
    lines = [f"# Sweep {report.sweep_id}", "", f"`{report.command}`", "", _summary(report), ""]
    lines += ["## What to deploy", "", *(f"{_escaped(text)}\n" for text in recommendations(report))]
    if report.measured:
        groups, columns = report.varying_choices, shown_columns(report)
        lines += ["## Cells", "", *_md_table([*groups, *(column.title for column in columns)], (
            [*(row.cell.get(group, "") for group in groups), *(column.text(row) for column in columns)]
            for row in report.measured
        )), ""]  # fmt: skip
    if found := findings(report):
        lines += ["## What explains the figures", "", *(f"- {name}: {_escaped(text)}" for name, text in found), ""]
    for picture in drawn:
        lines += [f"![{picture.title}]({picture.name})", "", _escaped(picture.caption), ""]
    if skipped := [row for row in report.rows if row.not_run]:
        lines += ["## Not run", "", *(f"- {row.name}: {_escaped(_why(row))}" for row in skipped), ""]
    for row in _failed(report):
        lines += [f"## Failed: {row.name}", "", _escaped(row.reason), "", *_fenced(row.log_tail)]
    if report.baselines:
        lines += ["## Baselines", "", *(f"- {_baseline(baseline)}" for baseline in report.baselines), ""]
    lines += ["## Environment", "", *(f"- {name}: {value}" for name, value in environment_lines(report)), ""]
    lines += ["## Commands", "", *_fenced("\n".join(row.command for row in report.rows))]
    return "\n".join(lines)


def _md_table(titles: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = [titles, ["---"] * len(titles), *([_escaped(cell) for cell in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _escaped(text: str) -> str:
    for special in "\\`*_[]<>|":
        text = text.replace(special, f"\\{special}")
    return " ".join(text.split())


def _fenced(text: str) -> list[str]:
    fence = "```"
    while fence in text:
        fence += "`"
    return [fence, text, fence, ""]


# --------------------------------------------------------------------------- HTML


def _html(report: SweepReport, drawn: list[Picture], folder: Path) -> str:
    title = html.escape(f"Sweep {report.sweep_id}")
    body = [f"<h1>{title}</h1>", f"<p><code>{html.escape(report.command)}</code></p>", f"<p>{_summary(report)}</p>"]
    body += ["<h2>What to deploy</h2>", *(f"<p>{html.escape(text)}</p>" for text in recommendations(report))]
    if report.measured:
        body += ["<h2>Cells</h2>", _html_cells(report)]
    if found := findings(report):
        items = (f"<li><b>{html.escape(name)}</b>: {html.escape(text)}</li>" for name, text in found)
        body += ["<h2>What explains the figures</h2>", "<ul>", *items, "</ul>"]
    for picture in drawn:
        data = base64.b64encode(picture.png).decode()
        caption = f"<figcaption>{html.escape(picture.caption)}</figcaption>"
        body.append(
            f'<figure><img alt="{html.escape(picture.title)}" src="data:image/png;base64,{data}">{caption}</figure>'
        )
    shown = [(row, " ".join(row.cell.get(group, "") for group in report.varying_choices)) for row in report.measured]
    if folded := [part for row, name in shown if (part := _html_pictures(name, row.pictures, folder))]:
        body += ["<h2>Pictures of each cell</h2>", *folded]
    if skipped := [row for row in report.rows if row.not_run]:
        items = (f"<li><b>{html.escape(row.name)}</b>: {html.escape(_why(row))}</li>" for row in skipped)
        body += ["<h2>Not run</h2>", "<ul>", *items, "</ul>"]
    for row in _failed(report):
        body += [f"<h2>Failed: {html.escape(row.name)}</h2>", f"<p>{html.escape(row.reason)}</p>"]
        body += [f"<pre>{html.escape(row.log_tail)}</pre>"] if row.log_tail else []
    if report.baselines:
        items = (f"<li>{html.escape(text)}</li>" for text in map(_baseline, report.baselines))
        body += ["<h2>Baselines</h2>", "<ul>", *items, "</ul>"]
        body += [_html_pictures(baseline.name, baseline.pictures, folder) for baseline in report.baselines]
    lines = (
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in environment_lines(report)
    )
    body += ["<h2>Environment</h2>", "<table>", *lines, "</table>"]
    commands = html.escape("\n".join(row.command for row in report.rows))
    body += ["<h2>Commands</h2>", "<p>Each reproduces one cell.</p>", f"<pre>{commands}</pre>"]
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{_STYLE}</style></head><body>",
            *body,
            f"<script>{_SORT}</script></body></html>",
        ]
    )


def _html_cells(report: SweepReport) -> str:
    groups, columns = report.varying_choices, shown_columns(report)
    titles = "".join(f"<th>{html.escape(title)}</th>" for title in [*groups, *(column.title for column in columns)])
    rows = []
    for row in report.measured:
        cells = [f"<td>{html.escape(row.cell.get(group, ''))}</td>" for group in groups]
        for column in columns:
            value = row.metrics.get(column.metric, "")
            kind = "flags" if column.title == "flags" else row.verdict if column.title == "verdict" else "figure"
            cells.append(f'<td class="{html.escape(kind)}" data-value="{value}">{html.escape(column.text(row))}</td>')
        rows.append(f'<tr title="{html.escape(row.scheme)}">{"".join(cells)}</tr>')
    head, body = f"<thead><tr>{titles}</tr></thead>", f"<tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table id="cells">{head}{body}</table></div>'


def _html_pictures(name: str, pictures: tuple[Path, ...], folder: Path) -> str:
    """Pictures behind a line to click on: files beside the page, of which a browser loads only those that are shown."""
    if not pictures:
        return ""
    figures = []
    for picture in pictures:
        source = html.escape(quote(picture.relative_to(folder).as_posix()))
        figures.append(f'<figure><img loading="lazy" src="{source}" alt="{html.escape(picture.stem)}"></figure>')
    return f"<details><summary>{html.escape(name)}</summary>{''.join(figures)}</details>"


# --------------------------------------------------------------------------- sentences of both


def _summary(report: SweepReport) -> str:
    counts = ", ".join(
        f"{count} {status}"
        for status in ("finished", "reused", "lowered", "failed", "skipped", "interrupted")
        if (count := sum(row.status == status for row in report.rows))
    )
    started = report.started.strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{len(report.rows)} cells: {counts or 'none'}. Started {started}, took {report.seconds:.0f} s."


def _why(row: Row) -> str:
    return row.reason or "the sweep ended before it was run; the same command goes on where it stopped"


def _failed(report: SweepReport) -> list[Row]:
    return [row for row in report.rows if row.status == "failed"]


def _baseline(baseline: Baseline) -> str:
    top1 = f"top-1 {100 * baseline.metrics['top1']:.2f} %, " if "top1" in baseline.metrics else ""
    return f"{baseline.name}: {top1}trained in {baseline.seconds:.0f} s"
