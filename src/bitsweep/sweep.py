"""From cells to a report: plans a grid, runs what is missing, and always says how it ended.

Every start of the command imports this module, so heavy imports stand inside.
"""

import contextlib
import functools
import itertools
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bitsweep import stages
from bitsweep.cell import Cell
from bitsweep.config.requirement import common
from bitsweep.errors import TrackingError, UsageError
from bitsweep.job import runner_of
from bitsweep.launching import Launch, launched, prepare
from bitsweep.naming import Asked, wrong_names
from bitsweep.options import Options
from bitsweep.planning import TO_DO, Planned, describe, plan
from bitsweep.running import baselines, run_planned
from bitsweep.runtime import child, machine
from bitsweep.runtime.store import Store

if TYPE_CHECKING:
    from bitsweep.report import SweepReport
    from bitsweep.search.sampling import Points
    from bitsweep.tracking.entries import Entry
    from bitsweep.tracking.shared import SharedResults


#: Exit code of a sweep, or of its report, where nothing is known to keep what is required.
UNMET = 3


def free_folder(wanted: Path) -> Path:
    """The folder that `own_folder` would create now."""
    return next(folder for folder in _places(wanted) if not (folder / ".sweep").exists())


def own_folder(wanted: Path) -> Path:
    """A folder that no other sweep has written to, created: the one that is wanted, or one beside it with a number."""
    for folder in _places(wanted):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            (folder / ".sweep").touch(exist_ok=False)
        except FileExistsError:
            continue
        if folder != wanted:
            print(f"{wanted} holds another sweep: this one is {folder}", flush=True)
        return folder
    raise AssertionError("numbers do not end")


def remove_unused(folder: Path) -> None:
    """Remove the folder of a sweep that ended before anything was written to it but what Hydra writes at its start."""
    found = list(folder.iterdir()) if folder.is_dir() else []
    if all(file.name in (".sweep", ".hydra") or (file.suffix == ".log" and not file.stat().st_size) for file in found):
        shutil.rmtree(folder, ignore_errors=True)


def _places(wanted: Path) -> Iterator[Path]:
    """The folder that is wanted, and those beside it, by their numbers."""
    yield wanted
    yield from (wanted.with_name(f"{wanted.name}-{number}") for number in itertools.count(2))


def run_sweep(
    cells: Sequence[Cell],
    options: Options,
    *,
    command: str,
    folder: Path,
    launch: Launch,
    at_once: bool = False,
    is_all: bool = False,
    points: "Points | None" = None,
) -> int:
    """Plan cells, train their baselines, run them, and report.

    Args:
        command: the command line that started this, for the report.
        folder: where the report is written, see ``own_folder``; its name is the sweep's id.
        at_once: whether cells are run many at once: then all are lowered before any is measured.
        is_all: whether this process does nothing else.
        points: what a search takes more cells from, which proposed the first ones; None where these are all.

    Returns:
        Exit code: 0; 1 if a cell failed or could not be measured; 2 if every cell has to be skipped; 3 if something is
        required, and of what was measured nothing is known to keep it.

    Raises:
        ConfigError: cells have different requirements, or no one artifact of them can be registered.
        BitsweepError: what is recommended cannot be registered.
    """
    require = common(cell.require for cell in cells)
    if options.register:
        from bitsweep.tracking.registry import check_registrable

        check_registrable(cells)
    machine.check()
    store = Store(options.store.folder)
    with contextlib.chdir(Path.cwd()):  # whatever a plug-in does
        by_store = plan(cells, store, None)
        if options.plan:
            shown = _names_checked(_plan_by_runs(cells, store, fetch=options.store.fetch) or by_store, {})
            print(describe(shown))
            if points:
                print("these are the first points of a search; which follow depends on what is found")
            return UsageError.exit_code if _all_skipped(shown) else 0
    store.check()
    if options.remeasure != "none" or any(each.verdict in TO_DO for each in by_store):
        child.warm_up()
    elif is_all:
        child.warm_up(child.FOR_PICTURES)
    from bitsweep.final_race import hold_races
    from bitsweep.report import unmet
    from bitsweep.tracking.connection import Connection
    from bitsweep.tracking.logger import RunLogger
    from bitsweep.tracking.reading import read_sweep
    from bitsweep.tracking.shared import SharedResults
    from bitsweep.tracking.sweep_logger import SweepLogger

    connection = Connection()
    shared = SharedResults(connection, store) if options.store.fetch else None
    logger, sweep_logger = RunLogger(connection, store), SweepLogger(connection, store)

    def finished(keys: Collection[str]) -> dict[str, str]:
        return {
            key: run.info.run_id
            for key, run in connection.cells(keys).items()
            if not (options.measures_again(run.data.tags) or logger.can_complete(run))
        }

    names: dict[Asked, str] = {}

    def plan_of(asked: Sequence[Cell]) -> list[Planned]:
        with contextlib.chdir(Path.cwd()):  # whatever a plug-in does
            return _names_checked(plan(asked, store, finished, shared=shared.known() if shared else ()), names)

    planned = plan_of(cells)
    print(describe(planned), flush=True)
    if options.stage != "cell":  # nothing is measured, so that there is nothing to report
        outcomes = list(launch(baselines(planned, options.expect), "baseline"))
        if options.stage != "baseline":
            outcomes += launch([each.cell for each in planned if each.verdict in TO_DO], options.stage)
        return int(any(outcome.status == "failed" for outcome in outcomes))

    reused = [each for each in planned if each.verdict == "reuse"]
    asked = points.knobs if points else []
    knobs = list(dict.fromkeys([*asked, *(name for each in planned for name, _ in each.cell.knobs)]))
    entries = {each: _entry(each, knobs) for each in planned}
    packages = [package for each in planned for package in each.cell.packages]
    since_ms = int(1000 * time.time())
    run_id = sweep_logger.start(folder.name, command, list(entries.values()), packages, require=require)
    is_there = functools.partial(_is_there, store, shared)
    launch = functools.partial(launched, launch, connection=connection, is_there=is_there, since_ms=since_ms)
    report, status = None, "killed"

    def reported() -> "SweepReport":
        sweep_logger.update(run_id, list(entries.values()))
        return read_sweep(connection, connection.client.get_run(run_id), folder=folder)

    def enter(more: Sequence[Cell]) -> list[Planned]:
        planned = plan_of(more)
        known = {each.identity for each in entries}
        fresh = [each for each in planned if each.identity not in known]
        print(describe(fresh), flush=True)
        entries.update({each: _entry(each, knobs) for each in fresh})
        for each in fresh:
            if each.verdict == "reuse":
                logger.adopt(each.run_id, sweep_id=folder.name)
        sweep_logger.update(run_id, list(entries.values()))
        return fresh

    try:
        for each in reused:
            logger.adopt(each.run_id, sweep_id=folder.name)
        if shared:
            shared.offer(*(each.cell for each in reused))
        ready = functools.partial(prepare, launch=launch, is_there=is_there) if at_once else None
        run_planned(
            planned,
            entries,
            options,
            launch=launch,
            prepare=ready,
            logger=logger,
            store=store,
            points=points,
            enter=enter,
        )
        for entry in entries.values():  # also those of a job that an earlier sweep has started
            if entry.run_id:
                logger.adopt(entry.run_id, sweep_id=folder.name)
        ended = "finished" if all(map(_as_planned, entries, entries.values())) else "failed"
        report = reported()
        races, reason = hold_races(
            report, [each.cell for each in entries], runner_of(options, folder), options.remeasure
        )
        if races or reason:
            sweep_logger.write_races(run_id, races, reason)
            report = report.raced(races, reason)
        status = ended
    finally:
        report = report or reported()
        if status == "finished" and any(row.status == "interrupted" for row in report.rows):
            status = "failed"  # what was to be run has no run
        sweep_logger.finish(run_id, status, publish(report, folder, store), report.records())
    if _all_skipped(list(entries)):
        return UsageError.exit_code
    if options.register and not unmet(report):
        from bitsweep.tracking.registry import register

        own = [each.cell for each in entries]
        print(register(options.register, report, own, connection, runner_of(options, folder)))
    return UNMET if unmet(report) else int(status != "finished")


def _names_checked(planned: Sequence[Planned], known: dict[Asked, str]) -> list[Planned]:
    """A plan without cells that name outputs or layers which their networks do not have.

    Args:
        known: see `wrong_names`.
    """
    wrong = wrong_names((each.cell for each in planned if each.verdict in TO_DO), known)
    return [
        replace(each, verdict="skip", reason=wrong[each.cell], trains=False) if each.cell in wrong else each
        for each in planned
    ]


def _all_skipped(planned: Sequence[Planned]) -> bool:
    return bool(planned) and all(each.verdict == "skip" for each in planned)


def _is_there(store: Store, shared: "SharedResults | None", stage: stages.Stage, key: str) -> bool:
    return bool(store.find(stage.name, key) or (shared and shared.has(stage, key)))


def _as_planned(planned: Planned, entry: "Entry") -> bool:
    """Whether nothing is left to do for a cell: it did not fail, and its target was not away."""
    return entry.verdict != "failed" and (entry.verdict != "lowered" or planned.verdict == "lower")


def _plan_by_runs(cells: Sequence[Cell], store: Store, *, fetch: bool) -> list[Planned] | None:
    """The plan by the runs in MLflow, where nothing is changed; None where nothing can be seen of them."""
    from bitsweep.tracking.connection import Connection
    from bitsweep.tracking.shared import SharedResults

    try:
        connection = Connection(read_only=True)
        shared: set[tuple[str, str]] = set()
        if fetch:
            with contextlib.suppress(UsageError):
                shared = SharedResults(connection, store, read_only=True).known()

        def finished(keys: Collection[str]) -> dict[str, str]:
            return {key: run.info.run_id for key, run in connection.cells(keys).items()}

        return plan(cells, store, finished, shared=shared)
    except UsageError:
        return None
    except TrackingError as error:
        print(f"planned by the store alone: {error}")
        return None


def _entry(planned: Planned, knobs: Sequence[str]) -> "Entry":
    """The line of a cell in the plan that is kept.

    Args:
        knobs: that any cell sets.
    """
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
        settings={name: value for name in knobs if name not in cell.choices and (value := cell.setting(name))},
        run_id=planned.run_id,
    )


def publish(report: "SweepReport", folder: Path, store: Store | None = None) -> list[Path]:
    """Print a report's table and write its files; pictures that a store has are not drawn again."""
    from bitsweep.report import table, write
    from bitsweep.report.terminal import console

    paths = write(report, folder, store)
    terminal = console()
    terminal.print(table(report, width=terminal.width))
    print(f"report: {folder / 'report.html'}    compare: bitsweep ui")
    return paths
