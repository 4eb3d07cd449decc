"""What is left to do of a plan, in order: lost files of reused cells, baselines, then all other cells, or a search."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bitsweep import stages
from bitsweep.cell import Cell
from bitsweep.config.requirement import common
from bitsweep.expectation import Expectation
from bitsweep.launching import Launch
from bitsweep.planning import TO_DO, Planned
from bitsweep.results import Outcome
from bitsweep.sweep_record import SweepRecord

if TYPE_CHECKING:
    from bitsweep.search.candidates import Candidate
    from bitsweep.search.prospects import Known
    from bitsweep.search.sampling import Points


def run_planned(
    planned: Sequence[Planned],
    record: SweepRecord,
    *,
    launch: Launch,
    prepare: Callable[[Sequence[Cell]], Mapping[Cell, Outcome]] | None,
    points: "Points | None",
) -> None:
    """Run what is to be run, baselines first, and write down how each cell ended.

    What a reused cell has lost in MLflow is logged again.

    Args:
        prepare: does what comes before measuring, and gives the outcome of those cells that failed; None where each
            cell does it itself, one after the other.
        points: what a search takes more cells from; None where the planned ones are all.
    """
    options, store, logger, entries = record.options, record.store, record.logger, record.entries
    reused = {each: entries[each].run_id for each in planned if each.verdict == "reuse"}
    gone = logger.lost(reused.values())
    lost = [each.cell for each, run_id in reused.items() if run_id in gone]
    launch([cell for cell in lost if store.find(stages.last(cell).name, stages.key_of(cell))], "cell")
    todo = [each for each in planned if each.verdict in TO_DO]
    first = baselines(planned, options.expect)
    incomplete = {stages.BASELINE.key_of(each.cell): each.cell for each in planned if each.verdict == "reuse"}
    launch([incomplete[key] for key in logger.incomplete_baselines(incomplete)], "baseline")
    # A single cell trains its baseline itself; the others must not all train the same one.
    several = len(todo) > 1 or (reused and options.expect.top1 is not None)
    broken = _failures(first, launch(first, "baseline")) if several else {}
    for each in [*todo, *reused]:
        if failure := broken.get(stages.BASELINE.key_of(each.cell)):
            record.end(each, failure)
    runnable, finished = ([each for each in part if entries[each].verdict != "failed"] for part in (todo, reused))
    if options.search.limited:
        _search([*runnable, *finished], record, launch=launch, points=points)
        return
    failed = prepare([each.cell for each in runnable]) if prepare and len(runnable) > 1 else {}
    ready = [each.cell for each in runnable if each.cell not in failed]
    outcomes = {**failed, **dict(zip(ready, launch(ready, "cell"), strict=True))}
    for each in runnable:
        record.end(each, outcomes[each.cell])


def _search(planned: Sequence[Planned], record: SweepRecord, *, launch: Launch, points: "Points | None") -> None:
    """Run those cells that may be the best, and write down of each how it ended, or why it was not run."""
    from bitsweep.search.by_running import ByRunning
    from bitsweep.search.prospects import name_of
    from bitsweep.search.strategy import search

    entries = record.entries
    protocol, require = next(iter(entries)).cell.protocol, common(each.cell.require for each in entries)
    evidence, searched = ByRunning(launch=launch, store=record.store), dict[str, Planned]()

    def described(planned: Sequence[Planned]) -> "list[Candidate]":
        left = [each for each in planned if each.verdict != "skip"]
        finished = [each.cell for each in left if each.verdict == "reuse"]
        candidates = evidence.candidates([each.cell for each in left], finished=finished)
        searched.update({name_of(candidate): each for candidate, each in zip(candidates, left, strict=True)})
        return candidates

    def more(known: "Known") -> "list[Candidate]":
        assert points
        points.tell(lambda cell: known.figures(each) if (each := evidence.candidate_of(cell)) else None)
        cells = points.propose()
        return described(record.enter(cells)) if cells else []

    found = search(
        described(planned),
        evidence,
        require=require,
        budget=record.options.search,
        confidence=protocol.confidence,
        more=more if points else None,
    )
    for name, each in searched.items():
        if each.verdict == "reuse":
            continue
        if outcome := evidence.outcome_of(each.cell):
            record.end(each, outcome)
        else:
            entries[each] = replace(entries[each], verdict="skip", reason=found.reasons[name])


def baselines(planned: Sequence[Planned], expect: Expectation) -> list[Cell]:
    """A cell for each baseline that is to be trained; for every baseline where something is expected of it."""
    if expect.top1 is None:
        return [each.cell for each in planned if each.trains]
    present = (each.cell for each in planned if each.verdict != "skip")
    return list({stages.BASELINE.key_of(cell): cell for cell in present}.values())


def _failures(cells: Sequence[Cell], outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
    return {
        stages.BASELINE.key_of(cell): replace(outcome, reason=f"its baseline failed: {outcome.reason}")
        for cell, outcome in zip(cells, outcomes, strict=True)
        if outcome.status == "failed"
    }
