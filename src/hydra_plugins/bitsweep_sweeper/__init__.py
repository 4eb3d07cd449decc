"""The sweeper, where Hydra looks for plug-ins: it knows only classes that are defined in this namespace."""

import contextlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

from bitsweep import stages
from bitsweep.cell import Cell
from bitsweep.composing import compose_all, files_read_once
from bitsweep.config.overrides import as_word
from bitsweep.configured import read, typed_command
from bitsweep.errors import BitsweepError, ConfigError
from bitsweep.launching import GaveUp, as_planned
from bitsweep.options import Options
from bitsweep.planning import names_of
from bitsweep.results import Outcome
from bitsweep.runtime.environment import physical_cores
from bitsweep.search.sampling import Interval, Points, corners
from bitsweep.several_values import ENDLESS, grid_overrides, spaces
from bitsweep.sweep import run_sweep
from bitsweep.sweep_folder import own_folder, remove_unused


class BitsweepSweeper(BasicSweeper):  # type: ignore[misc]
    """Plans a grid before anything runs, then hands the cells that are left to whatever launcher is chosen.

    Where a setting has an interval of values, the first points are planned, and others when something is known of them.
    """

    def __init__(
        self,
        max_batch_size: int | None = None,
        params: dict[str, str] | None = None,
        grids: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(max_batch_size=max_batch_size, params=params)
        self.grids = grids or {"": {}}

    def sweep(self, arguments: list[str]) -> None:
        """Run the grid that the command line spans; ends the program with the sweep's exit code."""
        assert self.config is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        overrides_of: dict[Cell, list[str]] = {}

        def bound(jobs: list[list[str]]) -> list[tuple[Cell, Options]]:
            configs = compose_all(loader, self.config, jobs, processes=physical_cores())
            found = [read(config, config.hydra) for config in configs]
            overrides_of.update(zip((cell for cell, _ in found), jobs, strict=True))
            return found

        given: dict[str, Any] = {"params": self.params or {}, "grids": self.grids, "loader": loader}
        sampled, points = spaces(arguments, **given, config=self.config), None
        grid = [each for space in sampled.values() for each in corners(space)] or grid_overrides(arguments, **given)
        read_cells = bound(grid)
        cells, options = [cell for cell, _ in read_cells], read_cells[0][1]
        if sampled:
            if not options.search.limited:
                endless = [key for space in sampled.values() for key in space if isinstance(space[key], Interval)]
                raise ConfigError(f"{', '.join(endless)}: {ENDLESS}")
            points = Points(sampled, options.search, cell_at=lambda overrides: bound([overrides])[0][0])
            cells = points.propose()
        wanted = Path(self.config.hydra.sweep.dir)
        folder = wanted if options.plan else own_folder(wanted)
        self._launched = 0

        def launch(cells: Sequence[Cell], stage: str) -> list[Outcome]:
            own = [f"stage={stage}", f"hydra.sweep.dir={as_word(str(folder))}"]
            called = dict(zip(overrides_of, names_of(list(overrides_of), stage), strict=True))
            jobs = []
            for cell in cells:
                told = {"planned": as_planned(cell, stage), "called": called[cell]}
                told |= {"job_folder": _folder_of(cell, stage)}
                jobs.append([*overrides_of[cell], *own, *(f"{key}={as_word(text)}" for key, text in told.items())])
            return self._launch(jobs)

        about: dict[str, Any] = {"command": typed_command(), "folder": folder, "launch": launch, "is_all": True}
        try:
            sys.exit(run_sweep(cells, options, at_once=self._chosen_launcher != "basic", points=points, **about))
        except BitsweepError:
            if not options.plan:
                remove_unused(folder)
            raise

    @property
    def _chosen_launcher(self) -> str:
        assert self.config is not None
        return str(self.config.hydra.runtime.choices["hydra/launcher"])

    def _launch(self, jobs: list[list[str]]) -> list[Outcome]:
        assert self.launcher is not None
        assert self.hydra_context is not None
        if not jobs:
            return []
        start = self._launched
        self._launched += len(jobs)
        # Others hand the loader to other processes, or compose all jobs at once.
        composes_each = self._chosen_launcher == "basic"
        loader = self.hydra_context.config_loader
        try:
            with files_read_once(loader) if composes_each else contextlib.nullcontext():
                returns = self.launcher.launch(jobs, initial_job_idx=start)
        except Exception as error:  # a launcher that loses its workers must not lose the report
            raise GaveUp(_one_line(f"hydra/launcher={self._chosen_launcher}: {error}")) from error
        outcomes = []
        for job in returns:
            found = job._return_value  # Hydra would print and raise what it is for a job that failed
            if isinstance(found, Exception):
                reason = _one_line(f"its job was lost ({type(found).__name__}: {found})")
                found = Outcome(status="failed", reason=reason, lost=True)
            outcomes.append(found)
        return outcomes


def _folder_of(cell: Cell, stage: str) -> str:
    """What tells the folder of a job from others, beside its number: what is made there, as a name of a file."""
    name = cell.baseline_name if stage == stages.BASELINE.name else cell.name
    return re.sub(r"[^\w.=+-]+", "-", name)[:100]


def _one_line(reason: str) -> str:
    return " ".join(reason.split())[:500]
