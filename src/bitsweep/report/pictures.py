"""Accuracy against cost, with the Pareto front, against bits and every knob that was swept, and across data sets.

The pictures are drawn in a process of their own: whatever happens there, the report is written.
"""

import itertools
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bitsweep.errors import BitsweepError, first_line
from bitsweep.plots.figures import save
from bitsweep.report import drawing
from bitsweep.report.choice import pareto_front
from bitsweep.report.content import SweepReport, confidence
from bitsweep.report.row import Row
from bitsweep.results import Evidence
from bitsweep.runtime import child
from bitsweep.runtime.file_by_file import load_evidence, make_files, note_lost
from bitsweep.runtime.progress import Progress

#: Seconds after which the drawing of a picture is given up.
_PATIENCE_S = 300


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG with the name of its file, its title, and what it shows in words.

    Attributes:
        png: empty where it could not be drawn; the caption says why then.
    """

    name: str
    title: str
    caption: str
    png: bytes


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """A picture that there are figures for.

    Attributes:
        draw: makes a figure of Matplotlib.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[], Any]


def pictures(report: SweepReport) -> list[Picture]:
    """For each data set, accuracy against latency, size, bits and every swept number; and data sets side by side.

    Each only where there are figures for it.
    """
    planned = _files(report)
    if not planned:
        return []
    with tempfile.TemporaryDirectory(prefix="bitsweep-pictures-") as scratch:
        folder = Path(scratch)
        drawn = _drawn(report, folder)
        return [_picture(name, each, drawn) for name, each in planned.items()]


def _drawn(report: SweepReport, folder: Path) -> Evidence:
    """The pictures as files, drawn one by one in a process that may crash or hang."""
    call = partial(
        child.call, draw_pictures, {"report": report}, folder=folder, log=folder / "log.txt", timeout_s=_PATIENCE_S
    )
    try:
        child.call_until_done(call, partial(note_lost, folder))
        return load_evidence(folder)
    except (BitsweepError, OSError) as error:
        return Evidence(folder=None, missing={name: first_line(error) for name in _files(report)})


def draw_pictures(*, report: SweepReport, folder: Path, progress: Progress) -> None:
    """Draw all pictures of a report into files."""
    make_files({name: partial(_draw, each) for name, each in _files(report).items()}, folder)


def _draw(planned: _Planned, path: Path) -> None:
    save(planned.draw(), path)


def _picture(name: str, planned: _Planned, drawn: Evidence) -> Picture:
    if drawn.folder is None or name in drawn.missing:
        why = f"{planned.title}: it could not be drawn ({drawn.missing[name]})"
        return Picture(name=name, title=planned.title, caption=why, png=b"")
    return Picture(name=name, title=planned.title, caption=planned.caption, png=(drawn.folder / name).read_bytes())


def _files(report: SweepReport) -> dict[str, _Planned]:
    """Name of a file, which holds plain letters only -> its picture."""
    named: dict[str, _Planned] = {}
    for planned in _planned(report):
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", planned.name)[:120]
        names = (f"{stem}{number}.png" for number in itertools.chain([""], itertools.count(2)))
        named[next(name for name in names if name not in named)] = planned
    return named


def _planned(report: SweepReport) -> Iterator[_Planned]:
    accurate = [row for row in report.measured if "top1" in row.metrics]
    if len({row.cell["dataset"] for row in accurate}) > 1:
        yield _Planned(
            name="datasets", title="accuracy on each data set", caption="Bars are medians over seeds.",
            draw=partial(drawing.across, accurate),
        )  # fmt: skip
    lines = "Points are cells; the line joins the medians over seeds, the band reaches from the least to the best."
    for dataset in dict.fromkeys(row.cell["dataset"] for row in accurate):
        rows = [row for row in accurate if row.cell["dataset"] == dataset]
        for metric, what in (("latency_p50_ms", "latency"), ("size_mb", "size")):
            if known := [row for row in rows if metric in row.metrics]:
                title = f"{dataset}: accuracy against {what}"
                yield _Planned(
                    name=f"{dataset}_{what}", title=title, caption=_on_the_front(report, known, metric),
                    draw=partial(drawing.against, known, title, metric, what),
                )  # fmt: skip
        if len({row.cell["precision"] for row in rows if drawing.BITS in row.metrics}) > 1:
            what = "bits per parameter, scales included"
            title = f"{dataset}: accuracy against {what}"
            draw = partial(drawing.along_bits, rows, title, what)
            yield _Planned(name=f"{dataset}_bits", title=title, caption=lines, draw=draw)
        for knob in swept_numbers(rows):
            title = f"{dataset}: accuracy against {knob}"
            draw = partial(drawing.along_knob, rows, title, knob)
            yield _Planned(name=f"{dataset}_{knob}", title=title, caption=lines, draw=draw)


def _on_the_front(report: SweepReport, rows: Sequence[Row], metric: str) -> str:
    names = ", ".join(report.name_of(rows[i]) for i in pareto_front(drawing.points_of(rows, metric)))
    bars = f"{sure} intervals" if (sure := confidence(rows))[0].isdigit() else "intervals"
    return f"Bars are {bars}. Filled: the Pareto front, the cells that no other beats in both: {names}."


def swept_numbers(rows: Sequence[Row]) -> list[str]:
    """Knobs that have at least three values among the rows, all of them numbers; seeds are repetitions."""
    found = []
    for knob in dict.fromkeys(name for row in rows for name in row.cell if "." in name):
        values = {row.value(knob) for row in rows} - {""}
        if len(values) >= 3 and not knob.endswith("seed") and all(map(_is_number, values)):
            found.append(knob)
    return found


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
