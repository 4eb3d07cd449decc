"""Accuracy against cost, with the Pareto front."""

import io
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
    """For each data set, accuracy against latency and against size; only where there are figures."""
    drawn = []
    for dataset in dict.fromkeys(row.cell["dataset"] for row in report.measured):
        rows = [row for row in report.measured if row.cell["dataset"] == dataset and "top1" in row.metrics]
        for metric, what, unit in (("latency_p50_ms", "latency", "ms"), ("size_mb", "size", "MB")):
            with_metric = [row for row in rows if metric in row.metrics]
            if with_metric:
                drawn.append(_against(with_metric, dataset, metric, what, unit))
    return drawn


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
