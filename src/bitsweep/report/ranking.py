"""Engines from the fastest to the slowest, for each network that several of them ran."""

from collections.abc import Sequence

from bitsweep.metrics import METRICS
from bitsweep.report.choice import TOLERATED_LOSS, p50_ms
from bitsweep.report.content import SweepReport, shown
from bitsweep.report.row import Row
from bitsweep.report.twins import twins
from bitsweep.report.verdict import accuracy


def engines(dataset: str, rows: list[Row], report: SweepReport) -> list[str]:
    """A paragraph for each model, each engine with its best cell; those first that raced each other in the end."""
    paragraphs, apart = [], False
    every = [*rows, *(row for row in twins(rows, report.races) if row.final)]
    for model in dict.fromkeys(row.cell["model"] for row in rows):
        fastest = _fastest_of_engines([row for row in every if row.cell["model"] == model])
        if len(fastest) < 2:
            continue
        raced, others = [row for row in fastest if row.final], [row for row in fastest if not row.final]
        apart = apart or bool(others)
        own = ", ".join(
            f"{row.engine} in {row.cell['precision']} ({shown(row, 'latency_p50_ms')} ms)" for row in others
        )
        order = f"{model} on {dataset}, engines from the fastest"
        if raced:
            behind = f" Then those that were not in it, by times of their own: {own}." if own else ""
            paragraphs.append(f"{order}, in a final race of interleaved blocks: {_finish(raced)}.{behind}")
        else:
            paragraphs.append(f"{order}: {own}.")
    if apart:
        paragraphs.append(
            "Each engine was timed against its own fp32, one engine after the other: between engines, "
            "differences of a tenth mean little."
        )
    return paragraphs


def _fastest_of_engines(rows: Sequence[Row]) -> list[Row]:
    """The fastest cell of each engine of those that keep the accuracy, in order; what raced comes first."""
    sound = [row for row in rows if row.believable and p50_ms(row) is not None]
    best = max(map(accuracy, sound), default=0.0)
    fastest: dict[str, Row] = {}
    for row in sorted(sound, key=lambda row: (row.final is None, p50_ms(row))):
        if row.final or accuracy(row) >= best - TOLERATED_LOSS:
            fastest.setdefault(row.engine, row)
    return list(fastest.values())


def _finish(raced: Sequence[Row]) -> str:
    """Who raced, and how far behind the winner each came in."""
    named = []
    for row in raced:
        assert row.final
        ms = METRICS["latency_p50_ms"].shown(row.final.p50_ms)
        behind = ""
        if row is not raced[0]:
            ends = f"{row.final.times:.2f} [{row.final.times_low:.2f}, {row.final.times_high:.2f}]"
            unclear = ", not distinguishable" if row.final.times_low <= 1 <= row.final.times_high else ""
            behind = f", {ends} times as long{unclear}"
        noisy = ", noisy" if row.final.noisy else ""
        named.append(f"{row.engine} in {row.cell['precision']} ({ms} ms{behind}{noisy})")
    return ", ".join(named)
