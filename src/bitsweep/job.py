"""One cell, run as far as the options say, and logged to MLflow."""

import contextlib
import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bitsweep import pipeline, stages
from bitsweep.cell import Cell
from bitsweep.cell_results import trained_of
from bitsweep.errors import BitsweepError
from bitsweep.expectation import Expectation
from bitsweep.launching import made, require_planned
from bitsweep.options import Options
from bitsweep.planning import duration, names_of
from bitsweep.results import Outcome
from bitsweep.runtime import child, machine
from bitsweep.runtime.store import Store
from bitsweep.text import say

if TYPE_CHECKING:
    from bitsweep.tracking.logger import RunLogger
    from bitsweep.tracking.shared import SharedResults


def run_cell(cell: Cell, options: Options, *, folder: Path, sweep_id: str) -> Outcome:
    """Run one cell as far as the options say, and log it to MLflow.

    Args:
        folder: where the log of its processes is written.
    """
    from bitsweep.tracking.connection import Connection
    from bitsweep.tracking.logger import RunLogger
    from bitsweep.tracking.shared import SharedResults

    machine.check()
    require_planned(cell, options.planned, options.stage)
    store = Store(options.store.folder)
    made_before = store.folder(stages.ARTIFACT.name, stages.ARTIFACT.key_of(cell)).exists()
    only_measures = made_before and options.stage == "cell" and not options.search.limited
    if only_measures:
        child.warm_up(child.FOR_MEASURING)
    else:
        child.warm_up()
    connect = functools.cache(functools.partial(Connection, of_job=True))
    shared = SharedResults(connect(), store) if options.store.fetch else None
    runner = runner_of(options, folder, shared)
    if options.stage in ("baseline", "cell"):
        connect()  # a server that does not answer is noticed before the work
    if options.remeasure != "none" and options.stage == "cell":
        run = connect().cells([stages.key_of(cell)]).get(stages.key_of(cell))
        if run and options.measures_again(run.data.tags):
            store.discard(stages.MEASUREMENT.name, stages.key_of(cell))
    with contextlib.chdir(Path.cwd()):  # whatever a plug-in does
        baseline_first = options.stage == "baseline" or options.expect.top1 is not None
        outcome = _expected(cell, runner, options.expect) if baseline_first else None
        if outcome is None or (outcome.status != "failed" and options.stage != "baseline"):
            if options.stage == "cell":
                outcome = pipeline.run(cell, runner)
            else:
                outcome = pipeline.run_as_far_as(made(cell, options.stage), cell, runner)
    try:
        if outcome.measurement:
            _restore(cell, runner)
        if _is_logged(outcome, options.stage):
            outcome = _logged(cell, outcome, options.stage, RunLogger(connect(), store), runner, sweep_id=sweep_id)
    except BitsweepError as error:
        outcome = replace(outcome, status="failed", reason=str(error))
    if shared:
        shared.offer(cell)
    called = options.called or names_of([cell], options.stage)[0]
    say(_summary(called, outcome, options.stage))
    return outcome


def _is_logged(outcome: Outcome, stage: str) -> bool:
    """Whether MLflow gets anything of a job. Of what only prepares a measurement it does not, so nothing is asked."""
    return stage in ("baseline", "cell") or outcome.status == "failed" or stages.BASELINE.name in outcome.seconds


def _logged(
    cell: Cell, outcome: Outcome, stage: str, logger: "RunLogger", runner: pipeline.StageRunner, *, sweep_id: str
) -> Outcome:
    """Log the baseline of a cell, and how the cell ended.

    Raises:
        BitsweepError: it cannot be logged.
    """
    baseline_run_id = ""
    if runner.store.find(stages.BASELINE.name, stages.BASELINE.key_of(cell)):
        if stages.BASELINE.name in outcome.seconds:  # it was trained just now
            for note in trained_of(cell, runner.store).notes:
                say(note)
        baseline_run_id = logger.log_baseline(cell, lambda: pipeline.evidence_of_baseline(cell, runner))
    if stage == "cell" or (stage == "artifact" and outcome.status == "failed"):
        evidence = pipeline.evidence_of_cell(cell, runner) if outcome.measurement else None
        run_id, evidence = logger.log_cell(
            cell, outcome, evidence, runner=runner, sweep_id=sweep_id, baseline_run_id=baseline_run_id
        )
        reason = "; ".join(filter(None, [outcome.reason, str(evidence or "")]))
        return replace(outcome, run_id=run_id, reason=reason)
    return outcome


def runner_of(options: Options, folder: Path, shared: "SharedResults | None" = None) -> pipeline.StageRunner:
    """What starts the processes of stages, with their log in a folder.

    Args:
        shared: where results may be that the store lacks.
    """
    runner = pipeline.StageRunner(
        store=Store(options.store.folder),
        log=folder / "log.txt",
        timeout_s=options.timeout_s,
        memory_gb=options.memory_gb,
    )
    return replace(runner, fetch=shared.fetch) if shared else runner


def _expected(cell: Cell, runner: pipeline.StageRunner, expect: Expectation) -> Outcome:
    """Train the baseline of a cell, or fail where it is another network than was meant."""
    outcome = pipeline.run_as_far_as(stages.BASELINE, cell, runner)
    reason = "" if outcome.status == "failed" else expect.unmet(cell, runner.store)
    return replace(outcome, status="failed", reason=reason) if reason else outcome


def _restore(cell: Cell, runner: pipeline.StageRunner) -> None:
    """Make again what a measurement is logged with, where the store was damaged after it was made.

    Raises:
        BitsweepError: that cannot be done.
    """
    for stage in (stages.DATA, stages.BASELINE, stages.COMPRESSED, stages.ARTIFACT):
        runner.build(stage, cell)


def _summary(called: str, outcome: Outcome, stage: str) -> str:
    done = {"screening": "screened", "artifact": "lowered"}.get(stage, "finished")
    status = done if outcome.status == "finished" else outcome.status
    ended = f"{status:<10}{called}"
    if outcome.status == "failed":
        return f"{ended}: {outcome.reason}"
    metrics = outcome.measurement.metrics if outcome.measurement else {}
    figures = [f"top-1 {100 * metrics['top1']:.2f} %"] if "top1" in metrics else []
    figures += [f"{metrics['latency_p50_ms']:.3g} ms"] if "latency_p50_ms" in metrics else []
    figures += [f"{metrics['size_mb']:.3g} MB"] if "size_mb" in metrics else []
    figures += [duration(sum(outcome.seconds.values())), *filter(None, [outcome.reason])]
    return f"{ended}: {', '.join(figures)}"
