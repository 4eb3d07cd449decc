"""Accuracy against cost, with the Pareto front, against bits and every knob that was swept, and across data sets.

The pictures are drawn in a process of their own: whatever happens there, the report is written.
"""

import contextlib
import dataclasses
import itertools
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bitsweep.errors import BitsweepError, StoreError, first_line
from bitsweep.plots.figures import save
from bitsweep.report import drawing
from bitsweep.report.choice import pareto_front
from bitsweep.report.content import SweepReport, confidence, name_among
from bitsweep.report.row import Row
from bitsweep.results import Evidence
from bitsweep.runtime import child, fingerprint
from bitsweep.runtime.file_by_file import load_evidence, make_files, note_lost
from bitsweep.runtime.progress import Progress
from bitsweep.runtime.store import Store

#: Of the pictures in a store.
_KIND = "report"
#: Seconds after which the drawing of a picture is given up.
_PATIENCE_S = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG with the name of its file, its title, and what it shows in words.

    Attributes:
        png: empty where it could not be drawn; the caption says why then.
    """

    name: str
    title: str
    caption: str
    png: bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Planned:
    """A picture that there are figures for.

    Attributes:
        draw: makes a figure of Matplotlib.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[], Any]


def pictures(report: SweepReport, store: Store | None = None) -> list[Picture]:
    """For each data set, accuracy against latency, size, bits and every swept number; and data sets side by side.

    Each only where there are figures for it.

    Args:
        store: where they are kept, so that those of a report whose figures have not changed are not drawn anew.
    """
    rows = [_drawn_of(row) for row in report.rows]
    planned = _files(rows)
    if not planned:
        return []
    key = _key(rows) if store else ""
    if store and (kept := store.find(_KIND, key)):
        return _pictures(planned, load_evidence(kept))
    with tempfile.TemporaryDirectory(prefix="bitsweep-pictures-") as scratch:
        drawn = _drawn(rows, Path(scratch))
        if store and drawn.folder and not drawn.missing:
            with contextlib.suppress(StoreError), store.building(_KIND, key, about={}) as folder:
                if folder:
                    shutil.copytree(scratch, folder, dirs_exist_ok=True)
        return _pictures(planned, drawn)


def _drawn_of(row: Row) -> Row:
    """A row without what no picture shows, such as the run that has it."""
    status = "finished" if row.measured else row.status
    taken = {name: getattr(row, name) for name in ("cell", "metrics", "shown", "confidence", "batch", "settings")}
    return Row(status=status, command="", **taken)


def _key(rows: Sequence[Row]) -> str:
    """Of the pictures of some rows in a store: by the figures, and the code that draws them."""
    return fingerprint.digest(
        fingerprint.code_of(__name__, draw_pictures.__name__), list(map(dataclasses.asdict, rows))
    )


def _drawn(rows: Sequence[Row], folder: Path) -> Evidence:
    """The pictures as files, drawn one by one in a process that may crash or hang."""
    call = partial(
        child.call, draw_pictures, {"rows": rows}, folder=folder, log=folder / "log.txt", timeout_s=_PATIENCE_S
    )
    try:
        child.call_until_done(call, partial(note_lost, folder))
        return load_evidence(folder)
    except (BitsweepError, OSError) as error:
        return Evidence(folder=None, missing={name: first_line(error) for name in _files(rows)})


def draw_pictures(*, rows: Sequence[Row], folder: Path, progress: Progress) -> None:
    """Draw all pictures of a report into files."""
    make_files({name: partial(_draw, each) for name, each in _files(rows).items()}, folder)


def _draw(planned: _Planned, path: Path) -> None:
    save(planned.draw(), path)


def _pictures(planned: dict[str, _Planned], drawn: Evidence) -> list[Picture]:
    return [_picture(name, each, drawn) for name, each in planned.items()]


def _picture(name: str, planned: _Planned, drawn: Evidence) -> Picture:
    if drawn.folder is None or name in drawn.missing:
        why = f"{planned.title}: it could not be drawn ({drawn.missing[name]})"
        return Picture(name=name, title=planned.title, caption=why, png=b"")
    return Picture(name=name, title=planned.title, caption=planned.caption, png=(drawn.folder / name).read_bytes())


def _files(rows: Sequence[Row]) -> dict[str, _Planned]:
    """Name of a file, which holds plain letters only -> its picture."""
    named: dict[str, _Planned] = {}
    for planned in _planned(rows):
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", planned.name)[:120]
        names = (f"{stem}{number}.png" for number in itertools.chain([""], itertools.count(2)))
        named[next(name for name in names if name not in named)] = planned
    return named


def _planned(rows: Sequence[Row]) -> Iterator[_Planned]:
    accurate = [row for row in rows if row.measured and "top1" in row.metrics]
    if len({row.cell["dataset"] for row in accurate}) > 1:
        yield _Planned(
            name="datasets", title="accuracy on each data set", caption="Bars are medians over seeds.",
            draw=partial(drawing.across, accurate),
        )  # fmt: skip
    lines = "Points are cells; the line joins the medians over seeds, the band reaches from the least to the best."
    for dataset in dict.fromkeys(row.cell["dataset"] for row in accurate):
        own = [row for row in accurate if row.cell["dataset"] == dataset]
        for metric, what in (("latency_p50_ms", "latency"), ("size_mb", "size")):
            if known := [row for row in own if metric in row.metrics]:
                title = f"{dataset}: accuracy against {what}"
                yield _Planned(
                    name=f"{dataset}_{what}", title=title, caption=_on_the_front(known, metric, among=rows),
                    draw=partial(drawing.against, known, title, metric, what),
                )  # fmt: skip
        if len({row.cell["precision"] for row in own if drawing.BITS in row.metrics}) > 1:
            what = "bits per parameter, scales included"
            title = f"{dataset}: accuracy against {what}"
            draw = partial(drawing.along_bits, own, title, what)
            yield _Planned(name=f"{dataset}_bits", title=title, caption=lines, draw=draw)
        for knob in swept_numbers(own):
            title = f"{dataset}: accuracy against {knob}"
            draw = partial(drawing.along_knob, own, title, knob)
            yield _Planned(name=f"{dataset}_{knob}", title=title, caption=lines, draw=draw)


def _on_the_front(rows: Sequence[Row], metric: str, *, among: Sequence[Row]) -> str:
    names = ", ".join(name_among(among, rows[i]) for i in pareto_front(drawing.points_of(rows, metric)))
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
