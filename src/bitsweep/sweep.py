"""From cells to a report: plans a grid, runs what is missing, and always says how it ended.

Every start of the command imports this module, so heavy imports stand inside.
"""

import contextlib
import functools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitsweep.cell import Cell
from bitsweep.config.requirement import common
from bitsweep.errors import TrackingError, UsageError
from bitsweep.job import runner_of
from bitsweep.launching import Launch, launched, prepare
from bitsweep.options import Options
from bitsweep.planning import TO_DO, Finished, Planned, describe, plan, with_names_checked
from bitsweep.running import baselines, run_planned
from bitsweep.runtime import child, machine
from bitsweep.runtime.store import Store
from bitsweep.sweep_record import SweepRecord

if TYPE_CHECKING:
    from bitsweep.report import SweepReport
    from bitsweep.search.sampling import Points

#: Exit code of a sweep, or of its report, where nothing is known to keep what is required.
UNMET = 3


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
            shown = with_names_checked(_plan_by_runs(cells, store, options) or by_store, {})
            print(describe(shown))
            if points:
                print("these are the first points of a search; which follow depends on what is found")
            return UsageError.exit_code if _all_skipped(shown) else 0
    store.check()
    if options.remeasure != "none" or any(each.verdict in TO_DO for each in by_store):
        child.warm_up()
    elif is_all:
        child.warm_up(child.FOR_PICTURES)
    record = SweepRecord.connected(options, store, folder)
    planned = record.plan(cells)
    print(describe(planned), flush=True)
    if options.stage != "cell":  # nothing is measured, so that there is nothing to report
        outcomes = list(launch(baselines(planned, options.expect), "baseline"))
        if options.stage != "baseline":
            outcomes += launch([each.cell for each in planned if each.verdict in TO_DO], options.stage)
        if _all_skipped(planned):
            return UsageError.exit_code
        return int(any(outcome.status == "failed" for outcome in outcomes))

    record.start(planned, command=command, require=require, knobs=points.knobs if points else ())
    report, status = _run_and_report(planned, record, launch, at_once=at_once, points=points)
    if _all_skipped(list(record.entries)):
        return UsageError.exit_code
    from bitsweep.report import unmet

    none_keeps = bool(report.measured) and unmet(report)  # without figures, it is the failures that count
    if options.register and not none_keeps:
        from bitsweep.tracking.registry import register

        own = [each.cell for each in record.entries]
        print(register(options.register, report, own, record.connection, runner_of(options, folder)))
    return UNMET if none_keeps else int(status != "finished")


def _run_and_report(
    planned: Sequence[Planned], record: SweepRecord, launch: Launch, *, at_once: bool, points: "Points | None"
) -> tuple["SweepReport", str]:
    """Run what is planned, let the fastest cells race, and write the report, however this ends.

    Returns:
        The report, and ``finished`` or ``failed``.
    """
    from bitsweep.final_race import hold_races

    options, folder = record.options, record.folder
    launch = functools.partial(
        launched, launch, connection=record.connection, is_there=record.is_there, since_ms=record.since_ms
    )
    report, status = None, "killed"
    try:
        reused = [each for each in planned if each.verdict == "reuse"]
        record.adopt(each.run_id for each in reused)
        if record.shared:
            record.shared.offer(*(each.cell for each in reused))
        ready = functools.partial(prepare, launch=launch, is_there=record.is_there) if at_once else None
        run_planned(planned, record, launch=launch, prepare=ready, points=points)
        # Also those of a job that an earlier sweep has started.
        record.adopt(entry.run_id for entry in record.entries.values() if entry.run_id)
        ended = "finished" if record.is_as_planned else "failed"
        report = record.report()
        cells = [each.cell for each in record.entries]
        races, reason = hold_races(report, cells, runner_of(options, folder), options.remeasure)
        if races or reason:
            record.write_races(races, reason)
            report = report.raced(races, reason)
        status = ended
    finally:
        report = report or record.report()
        if status == "finished" and any(row.status == "interrupted" for row in report.rows):
            status = "failed"  # what was to be run has no run
        record.finish(status, publish(report, folder, record.store), report)
    return report, status


def _all_skipped(planned: Sequence[Planned]) -> bool:
    return bool(planned) and all(each.verdict == "skip" for each in planned)


def _plan_by_runs(cells: Sequence[Cell], store: Store, options: Options) -> list[Planned] | None:
    """The plan by the runs in MLflow, where nothing is changed; None where nothing can be seen of them."""
    from bitsweep.tracking.connection import Connection
    from bitsweep.tracking.shared import SharedResults

    try:
        connection = Connection(read_only=True)
        shared: set[tuple[str, str]] = set()
        if options.store.fetch:
            with contextlib.suppress(UsageError):
                shared = SharedResults(connection, store, read_only=True).known()

        def finished(keys: Collection[str]) -> Finished:
            return Finished.of(connection.cells(keys), options)

        return plan(cells, store, finished, shared=shared)
    except UsageError:
        return None
    except TrackingError as error:
        print(f"planned by the store alone: {error}")
        return None


def publish(report: "SweepReport", folder: Path, store: Store | None = None) -> list[Path]:
    """Print a report's table and write its files; pictures that a store has are not drawn again."""
    from bitsweep.report import table, write
    from bitsweep.report.terminal import console

    paths = write(report, folder, store)
    terminal = console()
    terminal.print(table(report, width=terminal.width))
    print(f"report: {folder / 'report.html'}    compare: bitsweep ui")
    return paths
