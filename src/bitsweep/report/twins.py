"""The uncompressed cells that a grid leaves out: each was timed beside every cell that was compressed from it."""

from collections.abc import Sequence

from bitsweep.measuring.latency import CROWDED
from bitsweep.report.row import Race, Row
from bitsweep.results import AT_CHANCE

#: How far the times of one uncompressed cell may lie apart, beside several others.
_APART = 0.15


def twin_of(cell: dict[str, str]) -> dict[str, str]:
    """The choices of the uncompressed cell on the same engine."""
    kept = {name: value for name, value in cell.items() if not name.startswith(("method.", "precision."))}
    return kept | {"method": "none", "precision": "fp32"}


def twins(rows: Sequence[Row], races: Sequence[Race] = ()) -> list[Row]:
    """A row for each uncompressed cell that is none of the rows, by what is known of it from the races against it.

    Where several cells were timed against the same one, that of the quiet ones counts whose time is the median. Memory
    is not known.
    """
    known = [row for row in rows if {"size_ratio", "top1"} <= row.metrics.keys()]
    found = [(twin_of(beside[0].cell), beside) for beside in _beside(known)]
    grid = [row.cell for row in rows]
    return [_twin(cell, beside, races) for cell, beside in found if cell not in grid]


def unequal(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Of each uncompressed cell whose times lie too far apart, the rows beside which it was fastest and slowest.

    It is one file on one engine: where its times differ, the machine was not the same. Rows whose cores others used are
    left out: no time of theirs is their own, which their flag says.
    """
    found = []
    for beside in _beside([row for row in rows if CROWDED not in row.flags]):
        fastest, slowest = min(beside, key=own_ms), max(beside, key=own_ms)
        if own_ms(slowest) > (1 + _APART) * own_ms(fastest):
            found.append((fastest, slowest))
    return found


def _beside(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that were timed beside the same uncompressed cell, for each such cell."""
    found: dict[frozenset[tuple[str, str]], list[Row]] = {}
    for row in rows:
        if {"speedup", "latency_p50_ms"} <= row.metrics.keys():
            found.setdefault(frozenset(twin_of(row.cell).items()), []).append(row)
    return list(found.values())


def _twin(cell: dict[str, str], beside: list[Row], races: Sequence[Race]) -> Row:
    quiet = [row for row in beside if CROWDED not in row.flags] or beside
    by_time = sorted(quiet, key=own_ms)
    source = by_time[(len(by_time) - 1) // 2]
    metrics, ms = source.metrics, own_ms(source)
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


def own_ms(row: Row) -> float:
    """Time of the uncompressed cell beside a row."""
    return row.metrics["latency_p50_ms"] * row.metrics["speedup"]
