"""Sweeps from Python: the cells of a grid, what is to be done with them, running them, and what was found.

See `bitsweep.direct` for a network that is at hand.

    import bitsweep as bs

    cells = bs.grid("model=lenet precision=int8,fp16")
    print(bs.describe(bs.plan(cells)))
    print(bs.run(cells).frame()[["precision", "top1", "latency_p50_ms"]])

Cells run in processes of their own, which import none of the file that was started.
"""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import pydantic

from bitsweep.cell import Cell
from bitsweep.comparison.content import Comparison
from bitsweep.comparison.content import compare as compare_cells
from bitsweep.comparison.judging import Limits
from bitsweep.config.binding import invalid
from bitsweep.config.configurable import forget_files
from bitsweep.direct import compress, lower
from bitsweep.errors import ConfigError
from bitsweep.job import run_cell
from bitsweep.loaded import SweepResults
from bitsweep.options import Keeping, Options
from bitsweep.planning import Planned, describe, names_of
from bitsweep.planning import plan as plan_cells
from bitsweep.results import Outcome
from bitsweep.runtime.store import Store
from bitsweep.search.budget import Budget
from bitsweep.search.sampling import Points, SearchSpace
from bitsweep.sweep import run_sweep
from bitsweep.sweep_folder import own_folder

__all__ = ["compare", "compress", "describe", "grid", "load", "lower", "plan", "run", "space"]


def grid(overrides: str | Sequence[str], *, config_dir: Path | str | None = None) -> list[Cell]:
    """The cells of a grid, by the overrides of a command line with ``-m``.

    Args:
        overrides: as one text, quoted as in a shell, or one by one: ``["model=lenet", "precision=int8,fp16"]``.
        config_dir: folder of YAMLs of one's own, beside those of the package.

    Raises:
        ConfigError: naming key, value and what is allowed.
    """
    from bitsweep.hydra_app import cells_of

    return cells_of(_words(overrides, config_dir))


def space(overrides: str | Sequence[str], *, config_dir: Path | str | None = None) -> SearchSpace:
    """What a search chooses from, where a setting has an interval of values: ``"method.damping=interval(0.01,0.5)"``.

    Args:
        overrides, config_dir: see `grid`.

    Raises:
        ConfigError: naming key, value and what is allowed; there is no interval among them.
    """
    from bitsweep.hydra_app import space_of

    return space_of(_words(overrides, config_dir))


def plan(cells: Sequence[Cell], *, store: Path | str = Keeping.folder) -> list[Planned]:
    """What is to be done with each cell, judged by the store: run, reuse, or skip for a reason. Nothing is computed."""
    return plan_cells(_by_files_now(cells), Store(Path(store)), None)


def run(
    cells: Sequence[Cell] | SearchSpace,
    *,
    folder: Path | str | None = None,
    store: Path | str = Keeping.folder,
    fetch: bool = Keeping.fetch,
    remeasure: Literal["none", "noisy", "all"] = "none",
    timeout_s: float = Options.timeout_s,
    memory_gb: float = Options.memory_gb,
    register: str = "",
    search_minutes: float | None = None,
    search_cells: int | None = None,
    search_points: int = Budget.points,
    search_seed: int = 0,
) -> SweepResults:
    """Run what is missing of some cells one after the other, log it to MLflow, write a report, and read it.

    Args:
        cells: of a grid, or what a search chooses from.
        folder: of the report; its name is the sweep's id. None: a new one under ``multirun/``.
        store, fetch: see `bitsweep.options.Keeping`.
        remeasure, timeout_s, memory_gb, register: see `bitsweep.options.Options`.
        search_minutes, search_cells, search_points, search_seed: look for the best cell instead of running every one,
            see `bitsweep.search.budget.Budget`.

    Raises:
        ConfigError: a value is not allowed, there are no cells, or nothing limits a search.
        BitsweepError: the store or MLflow cannot be used. A cell that fails is a row of the report.
    """
    if not cells:
        raise ConfigError("there are no cells to run")
    try:
        budget = {"minutes": search_minutes, "cells": search_cells, "points": search_points, "seed": search_seed}
        options = Options(
            store=Keeping(folder=Path(store), fetch=fetch), remeasure=remeasure, timeout_s=timeout_s,
            memory_gb=memory_gb, register=register, search=budget,  # type: ignore[arg-type]  # checked by the class itself
        )  # fmt: skip
    except pydantic.ValidationError as error:
        raise invalid(Options, error) from None
    if isinstance(cells, SearchSpace) and not options.search.limited:
        raise ConfigError("a space has no end of cells; say search_minutes=30, or search_cells")
    place = own_folder(Path(folder or f"multirun/{datetime.now():%Y-%m-%d_%H-%M-%S}").absolute())

    def launch(asked: Sequence[Cell], stage: str) -> list[Outcome]:
        all_cells = asked if isinstance(cells, SearchSpace) else cells
        called = dict(zip(all_cells, names_of(all_cells, stage), strict=True))
        told = {each: replace(options, stage=stage, called=called[each]) for each in asked}  # type: ignore[arg-type]
        return [run_cell(each, told[each], folder=place, sweep_id=place.name) for each in asked]

    if isinstance(cells, SearchSpace):
        forget_files()
        points = Points(cells.spaces, options.search, cell_at=cells.cell_at)
        run_sweep(points.propose(), options, command=cells.command, folder=place, launch=launch, points=points)
    else:
        cells = _by_files_now(cells)
        command = " && ".join(cell.command for cell in cells)
        run_sweep(cells, options, command=command, folder=place, launch=launch)
    return load(place.name, folder=place)


def load(sweep_id: str, *, require: str = "", folder: Path | str | None = None) -> SweepResults:
    """What a sweep found, read from MLflow.

    Args:
        require: limits to judge it by, as on a command line: ``"require.drop_pp=1 require.size_mb=4"``. Those that it
            was run with stay where they are not set anew.
        folder: which its pictures are put into; None for ``multirun/SWEEP_ID``.

    Raises:
        ConfigError: a limit is not allowed.
        UsageError: there is no such sweep.
    """
    from bitsweep.hydra_app import requirements
    from bitsweep.tracking.connection import Connection
    from bitsweep.tracking.reading import find_sweep, read_sweep, requirements_of

    connection = Connection(read_only=True)
    sweep = find_sweep(connection, sweep_id)
    wanted = requirements(shlex.split(require), recorded=requirements_of(sweep))
    place = Path(folder) if folder else Path("multirun") / sweep.data.tags["sweep"]
    return SweepResults(report=read_sweep(connection, sweep, folder=place, require=wanted), connection=connection)


def compare(
    old: str,
    new: str,
    *,
    drop_pp: float = Limits.drop_pp,
    slower_pct: float = Limits.slower_pct,
    larger_pct: float = Limits.larger_pct,
) -> Comparison:
    """Two sweeps cell by cell: what became better or worse beyond chance, and what the figures do not tell.

    Args:
        old, new: id or folder of a sweep, ``latest``, ``previous``, or a file that ``bitsweep accept`` wrote.
        drop_pp, slower_pct, larger_pct: see `bitsweep.comparison.judging.Limits`.

    Raises:
        UsageError: there is no such sweep.
    """
    from bitsweep.comparison.reading import read_evidence

    limits = Limits(drop_pp=drop_pp, slower_pct=slower_pct, larger_pct=larger_pct)
    return compare_cells(read_evidence(old), read_evidence(new), limits)


def _words(overrides: str | Sequence[str], config_dir: Path | str | None) -> list[str]:
    """Overrides one by one, with the folder of YAMLs among them."""
    from bitsweep.config.overrides import as_word

    found = shlex.split(overrides) if isinstance(overrides, str) else list(overrides)
    return [*found, *([f"hydra.searchpath={as_word([f'file://{Path(config_dir).absolute()}'])}"] if config_dir else [])]


def _by_files_now(cells: Sequence[Cell]) -> list[Cell]:
    """The same cells, whose keys are those of the files as they are now."""
    forget_files()
    return [replace(cell) for cell in cells]
