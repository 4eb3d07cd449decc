"""Records of a method as files: tables as CSV and bar charts, curves as line charts."""

import csv
from collections.abc import Sequence
from pathlib import Path

from bitsweep.results import Curve, Table


def write_records(curves: Sequence[Curve], tables: Sequence[Table], folder: Path) -> None:
    """Write a CSV and a picture of every table, and one picture of the curves that show the same, into a folder."""
    for table in tables:
        with (folder / f"{table.name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([table.columns, *table.rows])
        if table.rows and _numeric(table):
            _draw_table(table, folder / f"{table.name}.png")
    for kind in dict.fromkeys(_kind(curve) for curve in curves):
        _draw_curves(kind, [curve for curve in curves if _kind(curve) == kind], folder / f"{kind}.png")


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
    from matplotlib.figure import Figure

    columns = _numeric(table)
    names = [str(row[0]) for row in table.rows]
    figure = Figure(figsize=(2 + 2.4 * len(columns), 1.2 + 0.22 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for index, (axes, column) in enumerate(zip(panels, columns, strict=True)):
        axes.barh(range(len(names)), [float(row[column]) for row in table.rows], color=f"C{index % 10}")
        axes.set_xlabel(table.columns[column])
        axes.grid(axis="x", alpha=0.3)
        axes.margins(y=0.01)
    panels[0].set_yticks(range(len(names)), names, fontsize=8)
    panels[0].invert_yaxis()
    figure.suptitle(table.name)
    figure.savefig(path, dpi=110)


def _draw_curves(kind: str, curves: Sequence[Curve], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for index, curve in enumerate(curves):
        name = curve.name.partition(".")[2] or kind
        axes.plot(range(len(curve.values)), curve.values, label=name, color=f"C{index % 10}", marker=".")
    axes.set_xlabel(curves[0].step)
    axes.set_ylabel(kind)
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=1 + len(curves) // 25)
    figure.savefig(path, dpi=110)
