"""The figures of a report: accuracy along a number, across data sets, and against what it costs."""

import statistics
from collections.abc import Sequence
from typing import Any

from bitsweep.metrics import METRICS
from bitsweep.plots.figures import drawable, drawable_names, number_logarithmic
from bitsweep.report.choice import pareto_front
from bitsweep.report.content import distinguishing
from bitsweep.report.row import Row

#: Metric of the bits of a cell.
BITS = "bits_per_parameter"
_MARKERS = "osD^vPX*"
#: Lines of a picture that a legend has room for.
_MOST_LINES_NAMED = 20


def along_knob(rows: Sequence[Row], title: str, knob: str) -> Any:
    """Accuracy against a knob whose values are numbers."""
    rows = [row for row in rows if row.value(knob)]
    points = [(float(row.value(knob)), row) for row in rows]
    return _along(points, title, knob, apart=[group for group in _varying(rows) if group != knob])


def along_bits(rows: Sequence[Row], title: str, what: str) -> Any:
    """Accuracy against bits per parameter."""
    points = [(row.metrics[BITS], row) for row in rows if BITS in row.metrics]
    methods = {row.cell["method"] for row in rows} - {"none"}
    # Where there is one method, its line starts at the network that it was applied to.
    same = ("precision", "method") if len(methods) <= 1 else ("precision",)
    apart = [group for group in _varying(rows) if not group.startswith(same)] or ["model"]
    return _along(points, title, what, apart=apart, ticks=(1, 2, 3, 4, 8, 16, 32))


def _varying(rows: Sequence[Row]) -> list[str]:
    """Config groups and knobs in which rows differ; seeds are repetitions."""
    return [name for name in distinguishing(rows) if not name.endswith("seed")]


def _name(row: Row, groups: Sequence[str]) -> str:
    return drawable(", ".join(filter(None, map(row.value, groups))), 60)


def _along(
    points: list[tuple[float, Row]], title: str, what: str, *, apart: list[str], ticks: Sequence[float] = ()
) -> Any:
    """Accuracy against a number, a line for the rows that are alike in some config groups or knobs.

    Args:
        apart: these.
        ticks: of a logarithmic scale; without, it depends on the numbers whether there is one, and they are its ticks.
    """
    from matplotlib.figure import Figure

    curves: dict[str, dict[float, list[float]]] = {}
    for value, row in points:
        name = _name(row, apart) or drawable(row.name, 60)
        curves.setdefault(name, {}).setdefault(value, []).append(100 * row.metrics["top1"])
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for index, (name, at) in enumerate(curves.items()):
        xs, colour = sorted(at), f"C{index % 10}"
        axes.plot(xs, [statistics.median(at[x]) for x in xs], color=colour, label=name, zorder=3)
        if any(len(at[x]) > 1 for x in xs):
            low, high = ([end(at[x]) for x in xs] for end in (min, max))
            axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.scatter([x for x in xs for _ in at[x]], [y for x in xs for y in at[x]], color=colour, s=20, alpha=0.6)
    values = sorted({x for at in curves.values() for x in at})
    if values[0] > 0 and (ticks or values[-1] >= 20 * values[0]):
        shown = [x for x in ticks if values[0] / 1.2 < x < 1.2 * values[-1]] or values
        axes.set_xscale("log", base=2)
        axes.set_xticks(shown, [f"{x:g}" for x in shown])
        axes.minorticks_off()
    axes.set_xlabel(drawable(what))
    axes.set_ylabel("top-1 accuracy (%)")
    axes.set_title(drawable(title, 90))
    axes.grid(alpha=0.3)
    if len(curves) <= _MOST_LINES_NAMED:
        axes.legend(fontsize=8)
    return figure


def across(rows: Sequence[Row]) -> Any:
    """Accuracy on each data set, a panel for each model, a bar for the rows that are alike in all else."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    apart = [group for group in _varying(rows) if group != "model" and not group.startswith("dataset")]
    apart = apart or ["method"]
    datasets, models = (list(dict.fromkeys(row.cell[group] for row in rows)) for group in ("dataset", "model"))
    names = list(dict.fromkeys(_name(row, apart) for row in rows))
    colours = colormaps["tab10" if len(names) <= 10 else "tab20"]
    width = 0.85 / len(names)
    size = max(8.0, 3.5 + 0.35 * len(names) * len(datasets)), 1.0 + 3.4 * len(models)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(models), sharex=True, squeeze=False).flat
    for axes, model in zip(panels, models, strict=True):
        for index, name in enumerate(names):
            found: dict[str, list[float]] = {}
            for row in rows:
                if (row.cell["model"], _name(row, apart)) == (model, name):
                    found.setdefault(row.cell["dataset"], []).append(100 * row.metrics["top1"])
            places = [datasets.index(dataset) + (index - (len(names) - 1) / 2) * width for dataset in found]
            heights = [statistics.median(values) for values in found.values()]
            axes.bar(places, heights, width, color=colours(index % colours.N), edgecolor="white", linewidth=0.5)
            for place, height in zip(places, heights, strict=True):
                axes.text(place, height + 1, f"{height:.1f}", ha="center", va="bottom", fontsize=7, rotation=90)
        axes.set_xticks(range(len(datasets)), drawable_names(datasets, 24))
        axes.set_ylim(0, 115)
        axes.set_yticks(range(0, 101, 20))
        axes.set_ylabel("top-1 accuracy (%)")
        axes.set_title(drawable(f"{model}: accuracy on each data set", 90))
        axes.grid(axis="y", alpha=0.3)
    axes.set_xlabel("data set")
    keys = [Patch(color=colours(index % colours.N), label=name) for index, name in enumerate(names)]
    figure.legend(
        handles=keys, fontsize=8, loc="outside right center", title=drawable(", ".join(apart), 60), title_fontsize=8
    )
    return figure


def against(rows: Sequence[Row], title: str, metric: str, what: str) -> Any:
    """Accuracy against what a metric says that it costs, with intervals and the Pareto front."""
    from matplotlib.figure import Figure

    points = points_of(rows, metric)
    front = pareto_front(points)
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    axes.step(*zip(*(points[i] for i in front), strict=True), where="post", color="0.6", linewidth=1, zorder=1)
    precisions = list(dict.fromkeys(row.cell["precision"] for row in rows))
    models = list(dict.fromkeys(row.cell["model"] for row in rows))
    for index, (row, (x, y)) in enumerate(zip(rows, points, strict=True)):
        low, high = (100 * row.metrics.get(f"top1_{end}", y / 100) for end in ("low", "high"))
        color = f"C{models.index(row.cell['model']) % 10}"
        marker = _MARKERS[precisions.index(row.cell["precision"]) % len(_MARKERS)]
        best = index in front
        axes.errorbar(x, y, yerr=[[max(0, y - low)], [max(0, high - y)]], color=color, alpha=0.3, zorder=1, capsize=2)
        axes.plot(x, y, marker, color=color, markersize=9 if best else 6, markerfacecolor=color if best else "white")
    axes.set_xscale("log")
    number_logarithmic(axes.xaxis, max(x for x, _ in points) / min(x for x, _ in points))
    axes.margins(x=0.12, y=0.1)
    batches = " or ".join(map(str, sorted({row.batch for row in rows})))
    of = f" at batch {batches}, p50" if what == "latency" else " of the stored artifact"
    axes.set_xlabel(f"{what} ({METRICS[metric].unit}, logarithmic){of}")
    axes.set_ylabel("top-1 accuracy (%)")
    axes.set_title(drawable(title, 90))
    axes.grid(alpha=0.3)
    axes.legend(handles=_legend(models, precisions), fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def points_of(rows: Sequence[Row], metric: str) -> list[tuple[float, float]]:
    """What each row costs, and its accuracy in percent."""
    return [(row.metrics[metric], 100 * row.metrics["top1"]) for row in rows]


def _legend(models: list[str], precisions: list[str]) -> list[object]:
    from matplotlib.lines import Line2D

    handles: list[object] = [
        Line2D([], [], color=f"C{i % 10}", linewidth=4, label=name) for i, name in enumerate(drawable_names(models, 40))
    ]
    for index, name in enumerate(drawable_names(precisions, 40)):
        handles.append(Line2D([], [], color="0.4", marker=_MARKERS[index % len(_MARKERS)], linestyle="", label=name))
    handles.append(Line2D([], [], color="0.6", linewidth=1, label="Pareto front"))
    return handles
