"""Which cell to deploy: the one that is best by the objective of those that keep what is required.

It is chosen on validation images where there are some, so that its figure on the test images is that of any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bitsweep.config.requirement import Requirements
from bitsweep.report.content import SweepReport
from bitsweep.report.row import HERE, Race, Row
from bitsweep.report.twins import twin_of, twins
from bitsweep.report.verdict import accuracy, verdict_of
from bitsweep.results import AT_CHANCE

#: A cell this close to the best accuracy, in shares, is as good where no limit says how good it must be.
TOLERATED_LOSS = 0.01
#: A compressed cell whose speed cannot be told from that of fp32 takes its place if it is by estimate so many times as
#: fast, at least.
AS_FAST = 0.9


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen, and from what.

    Attributes:
        row: None where there is nothing to choose.
        believable: rows with an accuracy that counts, uncompressed twins among them.
        keeping: those that keep all limits, or else the accuracy, and have a figure for the objective.
        slower: those of them that are left out since the same engine's fp32, which keeps all limits too, is faster.
        rivals: those of them among which the objective decides.
        best: the best accuracy that rows are within reach of; None where a limit says how good they must be.
    """

    row: Row | None
    believable: list[Row]
    keeping: list[Row]
    slower: list[Row]
    rivals: list[Row]
    best: float | None


def choose(rows: Sequence[Row], require: Requirements, races: Sequence[Race] = ()) -> Choice:
    """Choose among measured rows of one data set, and the uncompressed twins that they were timed against."""
    every = [*rows, *twins(rows, races)]
    believable = [row for row in every if row.believable and AT_CHANCE not in row.flags]
    keeping = [row for row in believable if verdict_of(row, require).state == "met"]
    best = None
    if require.drop_pp is None and require.top1 is None:
        best = max(map(accuracy, keeping), default=0.0)
        keeping = [row for row in keeping if accuracy(row) >= best - TOLERATED_LOSS]
    keeping = [row for row in keeping if cost(row, require.objective) is not None]
    slower: list[Row] = []
    left = keeping
    if require.objective in ("latency", "throughput"):
        slower, left = _by_paired_times(keeping)
    chosen = min(left, key=lambda row: (cost(row, require.objective), row.metrics["size_mb"]), default=None)
    return Choice(row=chosen, believable=believable, keeping=keeping, slower=slower, rivals=left, best=best)


def by_dataset(report: SweepReport) -> dict[str, list[Row]]:
    """Data set -> the rows of it that were measured; those of every machine apart, of which it tells the name."""
    found: dict[str, list[Row]] = {_place(row.cell): [] for row in report.rows}
    for row in report.measured:
        found[_place(row.cell)].append(row)
    return found


def _place(cell: dict[str, str]) -> str:
    """Times of unlike machines are not compared."""
    target = cell.get("target", HERE)
    return cell["dataset"] if target == HERE else f"{cell['dataset']} on {target}"


def recommended_rows(report: SweepReport) -> list[Row]:
    """The rows that are recommended, one a data set where there is one."""
    chosen = (choose(rows, report.require, report.races).row for rows in by_dataset(report).values())
    return [row for row in chosen if row is not None]


def _by_paired_times(keeping: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Rows that are slower than the same engine's fp32, which is among them, and the rows that may be the fastest.

    These are the others without the uncompressed that have no advantage over a cell that was timed beside them. They
    have one over a cell that seems a tenth slower, even if that is not sure: then the times of both decide. Where some
    of a network raced each other in the end, only those are left of it.
    """
    uncompressed = {_identity(row.cell) for row in keeping if row.uncompressed}
    slower = [row for row in keeping if row.verdict == "slower" and _identity(twin_of(row.cell)) in uncompressed]
    out = {id(row) for row in slower}
    as_fast = {
        _identity(twin_of(row.cell))
        for row in keeping
        if row.verdict and id(row) not in out and row.metrics.get("speedup", 1.0) >= AS_FAST
    }
    out |= {id(row) for row in keeping if row.uncompressed and _identity(row.cell) in as_fast}
    final = {heat(row.cell) for row in keeping if row.final and id(row) not in out}
    left = [row for row in keeping if id(row) not in out and (row.final or heat(row.cell) not in final)]
    return slower, left


def _identity(cell: dict[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(cell.items())


def cost(row: Row, objective: str) -> float | None:
    """What is to be as small as can be; None where a row has no figure for it."""
    if objective == "accuracy":
        return -accuracy(row)
    if objective == "size":
        return row.metrics.get("size_mb")
    if (ms := p50_ms(row)) is None:
        return None
    return ms if objective == "latency" else -row.batch / ms


def p50_ms(row: Row) -> float | None:
    """Median latency: that of the final race where the row was in it."""
    return row.final.p50_ms if row.final else row.metrics.get("latency_p50_ms")


def finalists(rows: Sequence[Row], require: Requirements) -> list[list[Row]]:
    """For each network that several engines ran, the fastest cell of each engine, in order: who may race.

    Those count that keep what is required, or else those that no other beats in both time and accuracy.

    Args:
        rows: measured ones of one data set.
    """
    return [[*engines.values()] for engines in _fastest(rows, require).values() if len(engines) > 1]


def _fastest(rows: Sequence[Row], require: Requirements) -> dict[tuple[str, ...], dict[str, Row]]:
    """For each network the fastest cell of each engine, in order."""
    choice = choose(rows, require)
    pool = [row for row in choice.rivals if p50_ms(row) is not None]
    if not pool:
        timed = [row for row in choice.believable if p50_ms(row) is not None]
        pool = [timed[i] for i in pareto_front([(p50_ms(row) or 0.0, accuracy(row)) for row in timed])]
    heats: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in sorted(pool, key=lambda row: p50_ms(row) or 0.0):
        heats.setdefault(heat(row.cell), {}).setdefault(row.engine, row)
    return heats


def races_that_count(report: SweepReport, races: Sequence[Race]) -> list[Race]:
    """Those races in which the cell ran that is the fastest by its own time, under the limits of a report.

    Under other limits than a race was held for, cells may be left that did not run in it, and none that did.

    Args:
        report: without races.
    """
    heats = [each for rows in by_dataset(report).values() for each in _fastest(rows, report.require).values()]
    first = [next(iter(engines.values())).cell for engines in heats]
    return [race for race in races if any(cell in race.cells for cell in first)]


def heat(cell: dict[str, str]) -> tuple[str, ...]:
    """What cells have in common whose times are compared: the network, the data and the protocol."""
    same = ("dataset", "model", "protocol", "target")
    return tuple(f"{name}={value}" for name, value in cell.items() if name.partition(".")[0] in same)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, gain) points that no other beats, from the cheapest on.

    A point is beaten by one that costs no more and gains no less, and is better in one of the two.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front
