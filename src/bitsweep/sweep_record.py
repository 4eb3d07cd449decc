"""What MLflow knows of a sweep while it runs: its plan, how each cell ended, and in the end its report."""

import contextlib
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bitsweep import stages
from bitsweep.cell import Cell
from bitsweep.config.requirement import Requirements
from bitsweep.naming import Asked
from bitsweep.options import Options
from bitsweep.planning import Finished, Planned, describe, plan, with_names_checked
from bitsweep.results import Outcome
from bitsweep.runtime.store import Store

if TYPE_CHECKING:
    from bitsweep.report import Race, SweepReport
    from bitsweep.tracking.connection import Connection
    from bitsweep.tracking.entries import Entry
    from bitsweep.tracking.logger import RunLogger
    from bitsweep.tracking.shared import SharedResults
    from bitsweep.tracking.sweep_logger import SweepLogger


@dataclass(kw_only=True, eq=False)
class SweepRecord:
    """The record of one sweep, which changes while it runs.

    Attributes:
        folder: of its report; its name is the sweep's id.
        shared: where results may be that the store lacks; None where they are looked for nowhere.
        entries: each cell of the plan, and how it ended.
        since_ms: when the sweep was started.
    """

    options: Options
    folder: Path
    store: Store
    connection: "Connection"
    logger: "RunLogger"
    shared: "SharedResults | None"
    entries: "dict[Planned, Entry]" = field(default_factory=dict)
    since_ms: int = 0
    _sweep_logger: "SweepLogger"
    _names: dict[Asked, str] = field(default_factory=dict)
    _knobs: list[str] = field(default_factory=list)
    _run_id: str = ""

    @classmethod
    def connected(cls, options: Options, store: Store, folder: Path) -> "SweepRecord":
        """A record of nothing yet, with a connection to MLflow."""
        from bitsweep.tracking.connection import Connection
        from bitsweep.tracking.logger import RunLogger
        from bitsweep.tracking.shared import SharedResults
        from bitsweep.tracking.sweep_logger import SweepLogger

        connection = Connection()
        return cls(
            options=options,
            folder=folder,
            store=store,
            connection=connection,
            logger=RunLogger(connection, store),
            shared=SharedResults(connection, store) if options.store.fetch else None,
            _sweep_logger=SweepLogger(connection, store),
        )

    def plan(self, cells: Sequence[Cell]) -> list[Planned]:
        """What is to be done with cells, by what MLflow and the store have of them."""
        shared = self.shared.known() if self.shared else ()
        with contextlib.chdir(Path.cwd()):  # whatever a plug-in does
            return with_names_checked(plan(cells, self.store, self._finished, shared=shared), self._names)

    def _finished(self, keys: Collection[str]) -> Finished:
        found = self.connection.cells(keys).items()
        complete = {key: run for key, run in found if not self.logger.can_complete(run)}
        return Finished.of(complete, self.options)

    def start(self, planned: Sequence[Planned], *, command: str, require: Requirements, knobs: Iterable[str]) -> None:
        """Write the plan down, so that even a sweep that is killed has a report.

        Args:
            command: the command line that started it.
            require: what its cells must keep.
            knobs: settings that are shown, besides those that the planned cells set.
        """
        self._knobs = list(dict.fromkeys([*knobs, *(name for each in planned for name, _ in each.cell.knobs)]))
        self.entries.update({each: _entry(each, self._knobs) for each in planned})
        packages = [package for each in planned for package in each.cell.packages]
        self.since_ms = int(1000 * time.time())
        self._run_id = self._sweep_logger.start(
            self.folder.name, command, list(self.entries.values()), packages, require=require
        )

    def enter(self, cells: Sequence[Cell]) -> list[Planned]:
        """Plan more cells, and write down those that are new, which are returned."""
        known = {each.identity for each in self.entries}
        fresh = [each for each in self.plan(cells) if each.identity not in known]
        print(describe(fresh), flush=True)
        self.entries.update({each: _entry(each, self._knobs) for each in fresh})
        self.adopt(each.run_id for each in fresh if each.verdict == "reuse")
        self._sweep_logger.update(self._run_id, list(self.entries.values()))
        return fresh

    def adopt(self, run_ids: Iterable[str]) -> None:
        """Let runs be this sweep's, too."""
        self.logger.adopt(run_ids, sweep_id=self.folder.name)

    def is_there(self, stage: stages.Stage, key: str) -> bool:
        """Whether a result is in the store, or can be fetched."""
        return bool(self.store.find(stage.name, key) or (self.shared and self.shared.has(stage, key)))

    def end(self, planned: Planned, outcome: Outcome) -> None:
        """Write down how a cell ended."""
        self.entries[planned] = replace(
            self.entries[planned], verdict=outcome.status, reason=outcome.reason, log_tail=outcome.log_tail,
            run_id=outcome.run_id,
        )  # fmt: skip

    @property
    def is_as_planned(self) -> bool:
        """Whether nothing is left to do for any cell: none failed, and the target of none was away."""
        return all(
            entry.verdict != "failed" and (entry.verdict != "lowered" or planned.verdict == "lower")
            for planned, entry in self.entries.items()
        )

    def report(self) -> "SweepReport":
        """Replace the plan in MLflow by how its cells ended, and read the report of the sweep from there."""
        from bitsweep.tracking.reading import read_sweep

        self._sweep_logger.update(self._run_id, list(self.entries.values()))
        run = self.connection.client.get_run(self._run_id)
        return read_sweep(self.connection, run, folder=self.folder, at_hand=self._pictures())

    def _pictures(self) -> dict[str, Path]:
        """Run id -> folder of the pictures of a cell that this sweep has run, where the store has them."""
        from bitsweep.evidence import PICTURES
        from bitsweep.runtime.file_by_file import load_evidence

        ran = {
            run_id: each.cell for each, entry in self.entries.items() if (run_id := entry.run_id) and not each.run_id
        }
        kind = stages.EVIDENCE
        found = {run_id: self.store.find(kind.name, kind.key_of(cell)) for run_id, cell in ran.items()}
        folders = {run_id: load_evidence(folder).folder for run_id, folder in found.items() if folder}
        return {run_id: files / PICTURES for run_id, files in folders.items() if files and (files / PICTURES).is_dir()}

    def write_races(self, races: "Sequence[Race]", reason: str) -> None:
        """Keep the final races, and why one could not be held."""
        self._sweep_logger.write_races(self._run_id, races, reason)

    def finish(self, status: str, files: Iterable[Path], report: "SweepReport") -> None:
        """Attach the files of the report, and end the run of the sweep: ``finished``, ``failed`` or ``killed``."""
        self._sweep_logger.finish(self._run_id, status, files, report.records())


def _entry(planned: Planned, knobs: Sequence[str]) -> "Entry":
    """The line of a cell in the plan that is kept.

    Args:
        knobs: that any cell of the sweep sets.
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
