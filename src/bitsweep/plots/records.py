"""Records of a method as files: tables as CSV and bar charts, curves as line charts."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bitsweep.plots import channels
from bitsweep.plots.figures import drawable_names, label, panels, save
from bitsweep.results import Curve, Table
from bitsweep.text import write_csv


def records(curves: Sequence[Curve], tables: Sequence[Table]) -> dict[str, Callable[[Path], None]]:
    """A CSV and a picture of every table, and one picture of the curves that show the same: name -> what writes it.

    That of channels is among the pictures of the cell.
    """
    found: dict[str, Callable[[Path], None]] = {}
    for table in tables:
        found[f"{table.name}.csv"] = partial(write_csv, [table.columns, *table.rows])
        if table.rows and _numeric(table) and table.name != channels.TABLE:
            found[f"{table.name}.png"] = partial(_draw_table, table)
    for kind in dict.fromkeys(_kind(curve) for curve in curves):
        found[f"{kind}.png"] = partial(_draw_curves, kind, [curve for curve in curves if _kind(curve) == kind])
    return found


def _kind(curve: Curve) -> str:
    """What a curve shows, without the layer that it shows it of."""
    return curve.name.partition(".")[0]


def _numeric(table: Table) -> list[int]:
    """Columns of numbers."""
    return [
        column
        for column in range(1, len(table.columns))
        if all(isinstance(row[column], int | float) for row in table.rows)
    ]


def _draw_table(table: Table, path: Path) -> None:
    columns = _numeric(table)
    names = drawable_names([str(row[0]) for row in table.rows], 40)
    figure, axes = panels(
        table.name, columns=len(columns), width=2.4, height=max(0.8, 0.22 * len(names)),
        left=0.3 + 0.085 * max(map(len, names)), between=0.25, top=0.1,
    )  # fmt: skip
    for index, (panel, column) in enumerate(zip(axes, columns, strict=True)):
        values = [float(row[column]) for row in table.rows]
        lengths = [value if math.isfinite(value) else 0.0 for value in values]
        panel.barh(range(len(names)), lengths, color=f"C{index % 10}")
        for place, value in enumerate(values):
            if not math.isfinite(value):
                panel.text(0, place, f" {value:g}", va="center", fontsize=7)
        label(panel, "", table.columns[column], "")
        panel.set_yticks(range(len(names)), names if index == 0 else [""] * len(names))
        panel.set_ylim(len(names) - 0.5, -0.5)
    save(figure, path)


def _draw_curves(kind: str, curves: Sequence[Curve], path: Path) -> None:
    names = drawable_names([curve.name.partition(".")[2] or kind for curve in curves], 40)
    legends = 1 + len(curves) // 25
    room = 0.15 if len(curves) == 1 else 0.3 + legends * (0.5 + 0.065 * max(map(len, names)))
    figure, (axes,) = panels(kind, width=6.0, height=3.4, right=room, top=0.05)
    for index, (curve, name) in enumerate(zip(curves, names, strict=True)):
        axes.plot(range(len(curve.values)), curve.values, label=name, color=f"C{index % 10}", marker=".")
    label(axes, "", curves[0].step, kind)
    if len(curves) > 1:
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=legends)
    save(figure, path)
