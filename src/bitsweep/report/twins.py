"""The uncompressed cells that a grid leaves out: each was timed beside every cell that was compressed from it."""

from collections.abc import Sequence

from bitsweep.measuring.latency import CROWDED
from bitsweep.report.row import Race, Row
from bitsweep.results import AT_CHANCE


def twin_of(cell: dict[str, str]) -> dict[str, str]:
    """The choices of the uncompressed cell on the same engine."""
    kept = {name: value for name, value in cell.items() if not name.startswith(("method.", "precision."))}
    return kept | {"method": "none", "precision": "fp32"}


def twins(rows: Sequence[Row], races: Sequence[Race] = ()) -> list[Row]:
    """A row for each uncompressed cell that is none of the rows, by what is known of it from the races against it.

    Where several cells were timed against the same one, that of the quiet ones counts whose time is the median. Memory
    is not known.
    """
    grid = {frozenset(row.cell.items()) for row in rows}
    beside: dict[frozenset[tuple[str, str]], list[Row]] = {}
    for row in rows:
        cell = frozenset(twin_of(row.cell).items())
        if {"speedup", "latency_p50_ms", "size_ratio", "top1"} <= row.metrics.keys() and cell not in grid:
            beside.setdefault(cell, []).append(row)
    return [_twin(twin_of(found[0].cell), found, races) for found in beside.values()]


def _twin(cell: dict[str, str], beside: list[Row], races: Sequence[Race]) -> Row:
    quiet = [row for row in beside if CROWDED not in row.flags] or beside
    by_time = sorted(quiet, key=_own_ms)
    source = by_time[(len(by_time) - 1) // 2]
    metrics, ms = source.metrics, _own_ms(source)
    top1 = metrics["top1"] + metrics.get("top1_drop_pp", 0.0) / 100
    known = {
        "top1": top1,
        "top1_drop_pp": 0.0,
        "flips": 0.0,
        "latency_p50_ms": ms,
        "latency_p50_ms_low": metrics["latency_p50_ms"] * metrics.get("speedup_low", metrics["speedup"]),
        "latency_p50_ms_high": metrics["latency_p50_ms"] * metrics.get("speedup_high", metrics["speedup"]),
        "throughput_ips": 1000 * source.batch / ms,
        "size_mb": metrics["size_mb"] / metrics["size_ratio"],
    }
    if "test_images" in metrics:
        known["test_images"] = metrics["test_images"]
    if "validation_images" in metrics:
        known |= {
            "validation_images": metrics["validation_images"],
            "validation_top1": metrics["validation_top1"] + metrics["validation_drop_pp"] / 100,
            "validation_drop_pp": 0.0,
            "validation_flips": 0.0,
        }
    return Row(
        cell=cell,
        status="finished",
        metrics=known,
        flags=tuple(flag for flag in source.flags if flag in (AT_CHANCE, "noisy", CROWDED)),
        command="",
        shown=tuple(knob for knob in source.shown if knob in cell),
        confidence=source.confidence,
        batch=source.batch,
        final=next((time for race in races if (time := race.time_of(cell))), None),
        in_grid=False,
    )


def _own_ms(row: Row) -> float:
    """Time of the uncompressed cell beside a row."""
    return row.metrics["latency_p50_ms"] * row.metrics["speedup"]
