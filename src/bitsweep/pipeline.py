"""From a cell to its measurement: load data, train or reuse the baseline, compress it, lower it, measure the artifact.

Each stage writes one folder of the store. A stage that is there already is not run again; its key says whether it is
(see `bitsweep.stages`).
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bitsweep import stages
from bitsweep.cell import Cell
from bitsweep.errors import BitsweepError, StoreError, UnreachableTarget, UsageError
from bitsweep.results import Evidence, Measurement, Outcome
from bitsweep.runtime import child
from bitsweep.runtime.containment import tail
from bitsweep.runtime.file_by_file import load_evidence
from bitsweep.runtime.machine import working
from bitsweep.runtime.store import Store
from bitsweep.stages import BASELINE, BASELINE_EVIDENCE, EVIDENCE, Stage


@dataclass(frozen=True, kw_only=True)
class StageRunner:
    """Where stages are run.

    Attributes:
        timeout_s, memory_gb: limits of each pass after training; 0 for none.
        log: file that the children's output is appended to.
        fetch: brings the result of a stage that the store lacks from elsewhere; gives None where there is none.
    """

    store: Store
    log: Path
    timeout_s: float = 0
    memory_gb: float = 0
    fetch: Callable[[Stage, str], Path | None] = lambda stage, key: None
    seconds: dict[str, float] = field(default_factory=dict)

    def build(self, stage: Stage, cell: Cell) -> Path:
        """The finished folder of a stage, run now with all that it needs if it is not in the store.

        Raises:
            BitsweepError: the stage failed.
        """
        key = stage.key_of(cell)
        if folder := self.store.find(stage.name, key) or self.fetch(stage, key):
            return folder
        inputs = stage.inputs(cell)
        folders = {name: self.build(*source) for name, source in inputs.items()}
        rests_on = [(source.name, source.key_of(of)) for source, of in inputs.values()]
        building = self.store.building(stage.name, key, about=stage.about(cell), rests_on=rests_on)
        with building as folder, working(quiet=stage.quiet):
            if folder is None:
                return self.store.folder(stage.name, key)
            unfinished = self.store.unfinished(stage.name, key)
            for work in stage.work:
                arguments = stages.arguments(work, cell, folders=folders, unfinished=unfinished)
                call = functools.partial(
                    child.call,
                    work,
                    arguments,
                    folder=folder,
                    log=self.log,
                    processes=stage.processes(cell),
                    timeout_s=self.timeout_s if stage.limited else 0,
                    memory_gb=self.memory_gb if stage.limited else 0,
                )
                child.call_until_done(call, functools.partial(stage.goes_on, folder))
            if stage.has_changed(cell):
                raise UsageError(
                    f"{cell.name}: files or code that its {stage.name} is made from were edited meanwhile; run the "
                    "command again"
                )
        self.seconds[stage.name] = self.seconds.get(stage.name, 0.0) + self.store.seconds(stage.name, key)
        return self.store.folder(stage.name, key)

    def call(self, work: Callable[..., None], arguments: Mapping[str, Any]) -> None:
        """Do what leaves no result in the store in a process of its own, within the same limits.

        Raises:
            BitsweepError: it failed.
        """
        child.call(
            work, arguments, folder=self.log.parent, log=self.log, timeout_s=self.timeout_s, memory_gb=self.memory_gb
        )


def run(cell: Cell, runner: StageRunner) -> Outcome:
    """Run a cell to its measurement, as far as this machine can, or to the reason why there is none."""

    def measured() -> Measurement:
        from bitsweep.measuring.passes import load_measurement

        return load_measurement(runner.build(stages.last(cell), cell))

    outcome = _outcome(measured, runner)
    reason = cell.cannot_run()
    return replace(outcome, status="lowered", reason=reason) if reason and outcome.measurement else outcome


def run_as_far_as(stage: Stage, cell: Cell, runner: StageRunner) -> Outcome:
    """Run a cell to the end of a stage, which measures nothing."""

    def made() -> None:
        runner.build(stage, cell)

    return _outcome(made, runner)


def evidence_of_cell(cell: Cell, runner: StageRunner) -> Evidence:
    """Pictures, records and facts of what was measured. What an earlier start could not make of them is tried again."""
    return _gather(EVIDENCE, stages.last(cell), cell, runner)


def evidence_of_baseline(cell: Cell, runner: StageRunner) -> Evidence:
    """The same of how the baseline was trained."""
    return _gather(BASELINE_EVIDENCE, BASELINE, cell, runner)


def _gather(stage: Stage, of: Stage, cell: Cell, runner: StageRunner) -> Evidence:
    """The evidence for the result of a stage.

    Raises:
        StoreError: the store cannot be used. Anything else is told as missing.
    """
    store, key = runner.store, stage.key_of(cell)
    if folder := store.find(stage.name, key):
        # The same is measured again where that is asked for, or where the store was damaged.
        outdated = store.finished_ns(stage.name, key) < store.finished_ns(of.name, of.key_of(cell))
        if outdated or load_evidence(folder).missing:
            store.discard(stage.name, key)
    try:
        return load_evidence(runner.build(stage, cell))
    except StoreError:
        raise
    except BitsweepError as error:
        return Evidence(folder=None, missing={"all of its files": str(error)})


def _outcome(work: Callable[[], Measurement | None], runner: StageRunner) -> Outcome:
    try:
        return Outcome(status="finished", measurement=work(), seconds=runner.seconds)
    except UnreachableTarget as error:
        return Outcome(status="lowered", reason=str(error), seconds=runner.seconds)
    except UsageError as error:
        return Outcome(status="failed", reason=str(error), seconds=runner.seconds)
    except BitsweepError as error:
        return Outcome(status="failed", reason=str(error), log_tail=tail(runner.log), seconds=runner.seconds)
