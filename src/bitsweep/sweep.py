"""From cells to a report: plans a grid, runs what is missing, and always says how it ended.

Every start of the command imports this module, so heavy imports stand inside.
"""

import contextlib
import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from bitsweep import pipeline, stages
from bitsweep.cell import Cell
from bitsweep.config.configurable import configurable
from bitsweep.config.requirement import common
from bitsweep.errors import BitsweepError, TrackingError, UsageError
from bitsweep.expectation import Expectation
from bitsweep.launching import Launch, launched, require_planned
from bitsweep.planning import TO_DO, Planned, describe, duration, plan
from bitsweep.results import Outcome
from bitsweep.runtime import child, machine
from bitsweep.runtime.store import Store

if TYPE_CHECKING:
    from bitsweep.report import SweepReport
    from bitsweep.tracking.entries import Entry


#: Exit code of a sweep, or of its report, where nothing is known to keep what is required.
UNMET = 3


@configurable
class Options:
    """The settings of a run that change no result, so that no key contains them.

    Attributes:
        plan: only show what would be run.
        stage: how far to go: ``cell`` measures, ``baseline`` only trains.
        remeasure: which finished cells to measure again: ``none``, those that are ``noisy``, or ``all``.
        store: folder of the artifact store.
        timeout_s: seconds that compressing, lowering and each measuring pass may take.
        memory_gb: how far the data of such a process may grow, in 10^9 bytes; 0 for any.
        expect: what baselines must reach, so that their cells go on.
        planned: key of the cell and machine where it was planned, see `bitsweep.launching`; empty for no plan.
    """

    plan: bool = False
    stage: Literal["cell", "baseline"] = "cell"
    remeasure: Literal["none", "noisy", "all"] = "none"
    store: Path = Path("multirun/store")
    timeout_s: Annotated[float, Field(gt=0)] = 3600
    memory_gb: Annotated[float, Field(ge=0)] = 0
    expect: Expectation = Expectation()
    planned: str = ""

    def __post_init__(self) -> None:
        if self.store == Path():
            raise ValueError("store=: name a folder, as in store=multirun/store")


def own_folder(wanted: Path) -> Path:
    """A folder that no other sweep has written to, created: the one that is wanted, or one beside it with a number."""
    for number in itertools.count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            (folder / ".sweep").touch(exist_ok=False)
        except FileExistsError:
            continue
        if number > 1:
            print(f"{wanted} holds another sweep: this one is {folder}", flush=True)
        return folder
    raise AssertionError("numbers do not end")


def _again(tags: Mapping[str, str], options: Options) -> bool:
    """Whether a finished cell is to be measured again."""
    flags = tags.get("flags", "").split(", ")
    return options.remeasure == "all" or (options.remeasure == "noisy" and "noisy" in flags)


def run_sweep(cells: Sequence[Cell], options: Options, *, command: str, folder: Path, launch: Launch) -> int:
    """Plan cells, train their baselines, run them, and report.

    Args:
        command: the command line that started this, for the report.
        folder: where the report is written, see ``own_folder``; its name is the sweep's id.

    Returns:
        Exit code: 0; 1 if a cell failed; 2 if every cell had to be skipped; 3 if something is required, and of what
        was measured nothing is known to keep it.

    Raises:
        ConfigError: cells have different requirements.
    """
    require = common(cell.require for cell in cells)
    machine.check()
    store = Store(options.store)
    with contextlib.chdir(Path.cwd()):  # whatever a plug-in does
        by_store = plan(cells, store, None)
        if options.plan:
            known = _tracked()
            print(describe(by_store if known is None else plan(cells, store, known)))
            return 0
    store.check()
    computes = options.remeasure != "none" or any(each.verdict in TO_DO for each in by_store)
    child.warm_up(*([] if computes else [child.FOR_PICTURES]))
    from bitsweep.final import hold_races
    from bitsweep.report import unmet
    from bitsweep.tracking.connection import Connection
    from bitsweep.tracking.logger import RunLogger
    from bitsweep.tracking.reading import read_sweep
    from bitsweep.tracking.sweep_logger import SweepLogger

    connection = Connection()
    logger, sweep_logger = RunLogger(connection, store), SweepLogger(connection, store)
    finished = {
        key: run.info.run_id
        for key, run in connection.cells().items()
        if not (_again(run.data.tags, options) or logger.can_complete(run))
    }
    with contextlib.chdir(Path.cwd()):  # whatever a plug-in does
        planned = plan(cells, store, finished)
    print(describe(planned), flush=True)
    if options.stage == "baseline":
        outcomes = launch(_baselines(planned, options.expect), "baseline")
        return int(any(outcome.status == "failed" for outcome in outcomes))

    reused = {each: finished[stages.key_of(each.cell)] for each in planned if each.verdict == "reuse"}
    entries = {each: _entry(each, reused.get(each, "")) for each in planned}
    packages = [package for each in planned for package in each.cell.packages]
    since_ms = int(1000 * time.time())
    run_id = sweep_logger.start(folder.name, command, list(entries.values()), packages, require=require)
    launch = functools.partial(launched, launch, connection=connection, store=store, since_ms=since_ms)
    report, status = None, "killed"

    def told() -> "SweepReport":
        sweep_logger.update(run_id, list(entries.values()))
        return read_sweep(connection, connection.client.get_run(run_id), folder=folder)

    try:
        for known in reused.values():
            logger.adopt(known, sweep_id=folder.name)
        lost = [each.cell for each, known in reused.items() if logger.is_lost(known)]
        launch([cell for cell in lost if store.find(stages.last(cell).name, stages.key_of(cell))], "cell")
        todo = [each for each in planned if each.verdict in TO_DO]
        first = _baselines(todo, options.expect)
        incomplete = {stages.BASELINE.key_of(each.cell): each.cell for each in planned if each.verdict == "reuse"}
        launch([incomplete[key] for key in logger.incomplete_baselines() & incomplete.keys()], "baseline")
        # A single cell trains its baseline itself; the others must not all train the same one.
        broken = _failures(first, launch(first, "baseline")) if len(todo) > 1 else {}
        runnable = [each for each in todo if stages.BASELINE.key_of(each.cell) not in broken]
        for each in todo:
            if each not in runnable:
                entries[each] = _ended(entries[each], broken[stages.BASELINE.key_of(each.cell)])
        outcomes = launch([each.cell for each in runnable], "cell")
        for each, outcome in zip(runnable, outcomes, strict=True):
            entries[each] = _ended(entries[each], outcome)
        ended = "failed" if any(entry.verdict == "failed" for entry in entries.values()) else "finished"
        report = told()
        races, reason = hold_races(report, [each.cell for each in entries], _runner(options, folder), options.remeasure)
        if races or reason:
            sweep_logger.write_races(run_id, races, reason)
            report = report.raced(races, reason)
        status = ended
    finally:
        report = report or told()
        if status == "finished" and any(row.status == "interrupted" for row in report.rows):
            status = "failed"  # what was to be run has no run
        sweep_logger.finish(run_id, status, publish(report, folder))
    if planned and all(each.verdict == "skip" for each in planned):
        return UsageError.exit_code
    return UNMET if unmet(report) else int(status != "finished")


def _tracked() -> dict[str, str] | None:
    """Cell key -> its run, of all finished cells; None where nothing was tracked yet, or cannot be seen."""
    from bitsweep.tracking.connection import Connection

    try:
        return {key: run.info.run_id for key, run in Connection(read_only=True).cells().items()}
    except UsageError:
        return None
    except TrackingError as error:
        print(f"planned by the store alone: {error}")
        return None


def run_cell(cell: Cell, options: Options, *, folder: Path, sweep_id: str) -> Outcome:
    """Run one cell as far as the options say, and log it to MLflow.

    Args:
        folder: where the log of its processes is written.
    """
    from bitsweep.tracking.connection import Connection
    from bitsweep.tracking.logger import RunLogger

    machine.check()
    require_planned(cell, options.planned, options.stage)
    store = Store(options.store)
    runner = _runner(options, folder)
    connection = Connection()
    logger = RunLogger(connection, store)
    if options.remeasure != "none" and options.stage == "cell":
        run = connection.cells().get(stages.key_of(cell))
        if run and _again(run.data.tags, options):
            store.discard(stages.MEASUREMENT.name, stages.key_of(cell))
    with contextlib.chdir(Path.cwd()):  # whatever a plug-in does
        baseline_first = options.stage == "baseline" or options.expect.top1 is not None
        outcome = _expected(cell, runner, options.expect) if baseline_first else None
        if outcome is None or (outcome.status != "failed" and options.stage == "cell"):
            outcome = pipeline.run(cell, runner)
    try:
        baseline_run_id = ""
        if store.find(stages.BASELINE.name, stages.BASELINE.key_of(cell)):
            baseline_run_id = logger.log_baseline(cell, pipeline.evidence_of_baseline(cell, runner))
        if options.stage == "cell":
            evidence = pipeline.evidence_of_cell(cell, runner) if outcome.measurement else None
            run_id, evidence = logger.log_cell(
                cell, outcome, evidence, runner=runner, sweep_id=sweep_id, baseline_run_id=baseline_run_id
            )
            reason = "; ".join(filter(None, [outcome.reason, str(evidence or "")]))
            outcome = replace(outcome, run_id=run_id, reason=reason)
    except BitsweepError as error:
        outcome = replace(outcome, status="failed", reason=str(error))
    print(_summary(cell, outcome, options.stage), flush=True)
    return outcome


def _runner(options: Options, folder: Path) -> pipeline.StageRunner:
    return pipeline.StageRunner(
        store=Store(options.store), log=folder / "log.txt", timeout_s=options.timeout_s, memory_gb=options.memory_gb
    )


def _baselines(planned: Sequence[Planned], expect: Expectation) -> list[Cell]:
    """A cell for each baseline that is to be trained; for each one of a cell to be run where something is expected."""
    if expect.top1 is None:
        return [each.cell for each in planned if each.trains]
    todo = (each.cell for each in planned if each.verdict in TO_DO)
    return list({stages.BASELINE.key_of(cell): cell for cell in todo}.values())


def _expected(cell: Cell, runner: pipeline.StageRunner, expect: Expectation) -> Outcome:
    """Train the baseline of a cell, or fail where it is another network than was meant."""
    outcome = pipeline.train(cell, runner)
    reason = "" if outcome.status == "failed" else expect.unmet(cell, runner.store)
    return replace(outcome, status="failed", reason=reason) if reason else outcome


def _summary(cell: Cell, outcome: Outcome, stage: str) -> str:
    name = cell.name if stage == "cell" else f"baseline {cell.model.name} on {cell.dataset.name}"
    ended = f"{outcome.status:<10}{name}"
    if outcome.status == "failed":
        return f"{ended}: {outcome.reason}"
    metrics = outcome.measurement.metrics if outcome.measurement else {}
    figures = [f"top-1 {100 * metrics['top1']:.2f} %"] if "top1" in metrics else []
    figures += [f"{metrics['latency_p50_ms']:.3g} ms"] if "latency_p50_ms" in metrics else []
    figures += [f"{metrics['size_mb']:.3g} MB"] if "size_mb" in metrics else []
    figures += [duration(sum(outcome.seconds.values())), *filter(None, [outcome.reason])]
    return f"{ended}: {', '.join(figures)}"


def _failures(cells: Sequence[Cell], outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
    return {
        stages.BASELINE.key_of(cell): replace(outcome, reason=f"its baseline failed: {outcome.reason}")
        for cell, outcome in zip(cells, outcomes, strict=True)
        if outcome.status == "failed"
    }


def _entry(planned: Planned, run_id: str) -> "Entry":
    from bitsweep.tracking.entries import Entry

    cell, skipped = planned.cell, planned.verdict == "skip"
    return Entry(
        cell=cell.choices,
        key="" if skipped else stages.key_of(cell),
        baseline_key="" if skipped else stages.BASELINE.key_of(cell),
        scheme="" if skipped else str(cell.scheme),
        command=cell.command,
        verdict=planned.verdict,
        reason=planned.reason if skipped else "",
        shown=list(cell.shown_knobs),
        confidence=cell.protocol.confidence,
        batch=cell.protocol.batch_sizes[0],
        run_id=run_id,
    )


def _ended(entry: "Entry", outcome: Outcome) -> "Entry":
    return replace(
        entry, verdict=outcome.status, reason=outcome.reason, log_tail=outcome.log_tail, run_id=outcome.run_id
    )


def publish(report: "SweepReport", folder: Path) -> list[Path]:
    """Print a report's table and write its files."""
    from bitsweep.report import table, write
    from bitsweep.report.terminal import console

    paths = write(report, folder)
    terminal = console()
    terminal.print(table(report, width=terminal.width))
    print(f"report: {folder / 'report.html'}    compare: bitsweep ui")
    return paths
