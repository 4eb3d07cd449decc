"""What the page of a report lets a reader plot: figures of the cells as plain numbers, and the limits on them."""

import math
from typing import Any

from bitsweep.metrics import METRICS, batch_of, metric_of
from bitsweep.report.choice import recommended_rows
from bitsweep.report.content import SweepReport
from bitsweep.report.row import Row
from bitsweep.report.verdict import LIMITS
from bitsweep.results import AT_CHANCE
from bitsweep.text import plain

#: Metrics that can be plotted -> what their axis is called.
AXES = {
    "latency_p50_ms": "median latency (ms)",
    "throughput_ips": "throughput (images/s)",
    "speedup": "speed-up over fp32",
    "size_mb": "size (MB)",
    "peak_rss_mb": "memory (MB)",
    "bits_per_parameter": "bits per parameter",
    "device_p50_ms": "time on the GPU (ms)",
    "peak_device_mb": "memory of the GPU (MB)",
    "top1": "top-1 accuracy (%)",
    "top1_drop_pp": "drop against fp32 (points)",
    "validation_drop_pp": "drop on validation images (points)",
}
#: Those of them that depend on the batch size.
_BY_BATCH = ("latency_p50_ms", "throughput_ips", "speedup", "device_p50_ms")
_ENDS = ("", "_low", "_high")


def plotted(report: SweepReport) -> dict[str, Any]:
    """The same as JSON types; cells are in the order of the table, which has all that is said of them."""
    rows = report.measured
    recommended = recommended_rows(report)
    datasets = list(dict.fromkeys(row.cell["dataset"] for row in rows))
    values = [_values(row) for row in rows]
    return {
        "axes": [
            {"name": name, "title": title, "better": METRICS[name].better, "byBatch": name in _BY_BATCH}
            for name, title in AXES.items()
            if any(name in each for each in values)
        ],
        "batches": _batches(rows),
        "datasets": [plain(name) for name in datasets],
        "groups": [plain(name) for name in _groups(report)],
        "limits": [
            {
                "metric": LIMITS[name].metric,
                "value": METRICS[LIMITS[name].metric].scale * bound,
                "text": f"require.{name}={bound:g}",
            }
            for name, bound in report.require.limits.items()
        ],
        "cells": [
            {
                "values": figures,
                "batch": str(row.batch),
                "dataset": plain(row.cell["dataset"]) if len(datasets) > 1 else "",
                "believable": row.believable and AT_CHANCE not in row.flags,
                "recommended": any(row is each for each in recommended),
            }
            for row, figures in zip(rows, values, strict=True)
        ],
    }


def _values(row: Row) -> dict[str, float]:
    """What can be plotted of a row, in the unit of its axis, also at other batch sizes."""
    named = {name + end for name in AXES for end in _ENDS}
    return {
        name: metric_of(name).scale * value
        for name, value in row.metrics.items()
        if math.isfinite(value) and name.removesuffix(batch_of(name)) in named
    }


def _batches(rows: list[Row]) -> list[str]:
    """Batch sizes that any row has a latency for, that of its protocol's first."""
    firsts = {row.batch for row in rows}
    others = {int(batch.removeprefix("_b")) for row in rows for name in row.metrics if (batch := batch_of(name))}
    return [str(size) for size in sorted(firsts | others)]


def _groups(report: SweepReport) -> list[str]:
    """Columns of choices that differ between cells, of which colours and shapes can tell."""
    rows = report.measured
    differing = [name for name in report.varying_choices if len({row.value(name) for row in rows}) > 1]
    return differing or report.varying_choices[:1]
