"""Accuracy against cost, with the Pareto front, and against every knob that was swept."""

import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bitsweep.report.content import Row, SweepReport, pareto_front

_MARKERS = "osD^vPX*"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG with the name of its file, its title, and what it shows in words."""

    name: str
    title: str
    caption: str
    png: bytes


def pictures(report: SweepReport) -> list[Picture]:
    """For each data set, accuracy against latency, size and every swept number; only where there are figures."""
    drawn = []
    for dataset in dict.fromkeys(row.cell["dataset"] for row in report.measured):
        rows = [row for row in report.measured if row.cell["dataset"] == dataset and "top1" in row.metrics]
        for metric, what, unit in (("latency_p50_ms", "latency", "ms"), ("size_mb", "size", "MB")):
            with_metric = [row for row in rows if metric in row.metrics]
            if with_metric:
                drawn.append(_against(with_metric, dataset, metric, what, unit))
        drawn += [_along(rows, dataset, knob) for knob in swept_numbers(rows)]
    return drawn


def swept_numbers(rows: Sequence[Row]) -> list[str]:
    """Knobs that have at least three values among the rows, all of them numbers; seeds are repetitions."""
    found = []
    for knob in dict.fromkeys(name for row in rows for name in row.cell if "." in name):
        values = {row.cell[knob] for row in rows if knob in row.cell}
        if len(values) >= 3 and not knob.endswith("seed") and all(map(_is_number, values)):
            found.append(knob)
    return found


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _along(rows: list[Row], dataset: str, knob: str) -> Picture:
    from matplotlib.figure import Figure

    rows = [row for row in rows if knob in row.cell]
    varying = [name for name in rows[0].cell if len({row.cell.get(name) for row in rows}) > 1]
    apart = [name for name in varying if name != knob and not name.endswith("seed")]
    curves: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        name = ", ".join(row.cell.get(axis, "") for axis in apart) or row.name
        curves.setdefault(name, {}).setdefault(float(row.cell[knob]), []).append(100 * row.metrics["top1"])
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for index, (name, points) in enumerate(curves.items()):
        xs, colour = sorted(points), f"C{index % 10}"
        axes.plot(xs, [statistics.median(points[x]) for x in xs], color=colour, label=name, zorder=3)
        if any(len(points[x]) > 1 for x in xs):
            low, high = ([end(points[x]) for x in xs] for end in (min, max))
            axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.scatter(
            [x for x in xs for _ in points[x]], [y for x in xs for y in points[x]], color=colour, s=14, alpha=0.6
        )
    values = [x for points in curves.values() for x in points]
    if min(values) > 0 and max(values) >= 20 * min(values):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(set(values)), [f"{x:g}" for x in sorted(set(values))])
        axes.minorticks_off()
    axes.set_xlabel(knob)
    axes.set_ylabel("top-1 accuracy (%)")
    axes.set_title(f"{dataset}: accuracy against {knob}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return Picture(
        name=f"{dataset}_{knob}.png",
        title=f"{dataset}: accuracy against {knob}",
        caption="Points are cells; the line joins the medians over seeds, the band reaches from the least to the best.",
        png=buffer.getvalue(),
    )


def _against(rows: list[Row], dataset: str, metric: str, what: str, unit: str) -> Picture:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    points = [(row.metrics[metric], 100 * row.metrics["top1"]) for row in rows]
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
    span = max(x for x, _ in points) / min(x for x, _ in points)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}" if span < 4 else NullFormatter())
    axes.margins(x=0.12, y=0.1)
    axes.set_xlabel(
        f"{what} ({unit}, logarithmic)" + (" at batch 1, p50" if what == "latency" else " of the stored artifact")
    )
    axes.set_ylabel("top-1 accuracy (%)")
    axes.set_title(f"{dataset}: accuracy against {what}")
    axes.grid(alpha=0.3)
    axes.legend(handles=_legend(models, precisions), fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    names = ", ".join(rows[i].name for i in front)
    return Picture(
        name=f"{dataset}_{what}.png",
        title=f"{dataset}: accuracy against {what}",
        caption=f"Bars are 95 % intervals. Filled: the Pareto front, the cells that no other beats in both: {names}.",
        png=buffer.getvalue(),
    )


def _legend(models: list[str], precisions: list[str]) -> list[object]:
    from matplotlib.lines import Line2D

    handles: list[object] = [
        Line2D([], [], color=f"C{i % 10}", linewidth=4, label=name) for i, name in enumerate(models)
    ]
    for index, name in enumerate(precisions):
        handles.append(Line2D([], [], color="0.4", marker=_MARKERS[index % len(_MARKERS)], linestyle="", label=name))
    handles.append(Line2D([], [], color="0.6", linewidth=1, label="Pareto front"))
    return handles
