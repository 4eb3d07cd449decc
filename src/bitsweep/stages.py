"""The stages of a cell: their names, their keys, and what needs what.

The work of a stage is functions of `bitsweep.stage_work`. Their parameters are named in the two tables below, or are
given when the stage is run. So signatures alone say what a stage reads, and with it what has to be run before, and what
is in its key:

- the settings that the functions take,
- the keys of the stages whose folders they take,
- their code, and the code of those settings' classes,
- and of the machine what the result depends on.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitsweep import stage_work
from bitsweep.cell import Cell
from bitsweep.config.configurable import files_read_anew, identity
from bitsweep.errors import UsageError
from bitsweep.runtime import fingerprint
from bitsweep.runtime.environment import current_gpu
from bitsweep.runtime.file_by_file import note_lost

Work = Callable[..., None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """A step whose result is kept.

    Attributes:
        work: what fills the stage's folder, one function after the other, each in a process of its own.
        choices: what makes it take longer or shorter, for estimates.
        machine: what of the machine its result depends on.
        quiet: whether nothing else of any sweep may compute on this machine meanwhile.
        limited: whether the time and memory limits apply.
        goes_on: whether to start another process where one was lost; it is told the folder and why.
        processes: how many do the work together; where more than one may, its functions take their ``rank``.
    """

    name: str
    work: tuple[Work, ...]
    choices: tuple[str, ...]
    machine: Callable[[Cell], list[Any]] = lambda cell: []
    quiet: bool = False
    limited: bool = True
    goes_on: Callable[[Path, str], bool] = lambda folder, reason: False
    processes: Callable[[Cell], int] = lambda cell: 1

    def key_of(self, cell: Cell) -> str:
        """The key of this stage's result for a cell."""
        if self.name not in cell.keys:
            cell.keys[self.name] = self._key_of(cell)
        return cell.keys[self.name]

    def has_changed(self, cell: Cell) -> bool:
        """Whether files or code that the key was made from have been edited since; what is gone had been read.

        The files of the data set are read where it is decoded, and nowhere else.
        """
        decoded = [of.dataset for stage, of in self.inputs(cell).values() if stage is DATA]
        with files_read_anew(*decoded):
            try:
                return self._key_of(cell) != self.key_of(cell)
            except UsageError:
                return False

    def _key_of(self, cell: Cell) -> str:
        return fingerprint.digest(
            self.name,
            {name: _identity(setting) for work in self.work for name, setting in settings_of(work, cell).items()},
            {name: stage.key_of(of) for name, (stage, of) in self.inputs(cell).items()},
            [fingerprint.code(work, *_classes(settings_of(work, cell).values())) for work in self.work],
            self.machine(cell),
        )

    def inputs(self, cell: Cell) -> "dict[str, tuple[Stage, Cell]]":
        """The stages whose folders are read, and the cells that they are of, by parameter."""
        found = {name: source for work in self.work for name, source in inputs_of(work, cell).items()}
        return {name: source for name, source in found.items() if source}

    def about(self, cell: Cell) -> dict[str, str]:
        """The choices that make the stage take longer or shorter."""
        return {group: getattr(cell, group).name for group in self.choices}


def _cpu(cell: Cell) -> list[Any]:
    return [cell.target.cpu.model, cell.target.cpu.isa]


def _machine_code(cell: Cell) -> list[Any]:
    gpu = current_gpu() if cell.backend.on_gpu else None
    return [] if cell.backend.portable else [*_cpu(cell), *((gpu.model, gpu.architecture) if gpu else ())]


def _all_of_the_machine(cell: Cell) -> list[Any]:
    gpu = current_gpu()
    return [*_cpu(cell), cell.target.cores, gpu.model if gpu else ""]


DATA = Stage(name="dataset", work=(stage_work.load_data,), choices=("dataset",), limited=False)
BASELINE = Stage(
    name="baseline",
    work=(stage_work.train_baseline,),
    choices=("model", "dataset", "train"),
    limited=False,
    processes=lambda cell: cell.train.devices,
)
COMPRESSED = Stage(name="compressed", work=(stage_work.compress,), choices=("model", "dataset", "method", "precision"))
SCREENING = Stage(name="screening", work=(stage_work.screen,), choices=("model", "dataset"))
ARTIFACT = Stage(
    name="artifact", work=(stage_work.lower,), choices=("model", "precision", "backend"), machine=_machine_code
)
PROBE = Stage(name="probe", work=(stage_work.probe,), choices=("precision", "backend"), machine=_cpu)
INSPECTION = Stage(
    name="inspection", work=(stage_work.inspect,), choices=("model", "backend"), machine=_all_of_the_machine
)
MEASUREMENT = Stage(
    name="measurement",
    work=(stage_work.evaluate, stage_work.measure_latency, stage_work.measure_memory),
    choices=("model", "dataset", "backend", "protocol"),
    machine=_all_of_the_machine,
    quiet=True,
)
MEASUREMENT_THERE = Stage(
    name="measurement",
    work=(stage_work.measure_there,),
    choices=("model", "dataset", "backend", "protocol", "target"),
    machine=_cpu,
)
EVIDENCE = Stage(
    name="evidence",
    work=(stage_work.gather_evidence,),
    choices=("model", "dataset", "method", "precision", "backend"),
    goes_on=note_lost,
)
BASELINE_EVIDENCE = Stage(
    name="baseline_evidence",
    work=(stage_work.gather_baseline_evidence,),
    choices=("model", "dataset"),
    goes_on=note_lost,
)

#: Parameters that are settings of a cell.
_SETTINGS: dict[str, Callable[[Cell], Any]] = {
    "name": lambda cell: cell.name,
    "baseline_name": lambda cell: cell.baseline_name,
    "dataset": lambda cell: cell.dataset,
    "model": lambda cell: cell.model,
    "baseline_model": lambda cell: cell.twin.model,
    "framing": lambda cell: cell.model.framing,
    "published": lambda cell: cell.model.framed_by_weights,
    "train": lambda cell: cell.train,
    "seed": lambda cell: cell.seed,
    "method": lambda cell: cell.method,
    "precision": lambda cell: cell.precision,
    "scheme": lambda cell: cell.scheme,
    "backend": lambda cell: cell.backend,
    "protocol": lambda cell: cell.protocol,
    "target": lambda cell: cell.target,
    "eval_batch": lambda cell: cell.protocol.eval_batch,
    "parity_images": lambda cell: cell.protocol.parity_images,
}
#: Parameters that are folders of stages, of the cell or of its twin; None where the cell has no need of one.
_INPUTS: dict[str, Callable[[Cell], tuple[Stage, Cell] | None]] = {
    "data": lambda cell: (DATA, cell),
    "baseline": lambda cell: (BASELINE, cell),
    "original": lambda cell: None if cell.twin is cell else (COMPRESSED, cell.twin),
    "compressed": lambda cell: (COMPRESSED, cell),
    "twin": lambda cell: (ARTIFACT, cell.twin),
    "artifact": lambda cell: (ARTIFACT, cell),
    "measured": lambda cell: (last(cell), cell),
    "probed": lambda cell: (PROBE, cell) if cell.scheme.arithmetic == "integer" else None,
}
#: Parameters that are given when the work is done, and change nothing of its result.
_GIVEN = ("folder", "unfinished", "progress", "rank")


@functools.cache
def _parameters(work: Work) -> tuple[str, ...]:
    names = tuple(inspect.signature(work).parameters)
    assert {*names} <= {*_SETTINGS, *_INPUTS, *_GIVEN}, work
    return names


def settings_of(work: Work, cell: Cell) -> dict[str, Any]:
    """The settings that a function takes."""
    return {name: _SETTINGS[name](cell) for name in _parameters(work) if name in _SETTINGS}


def inputs_of(work: Work, cell: Cell) -> dict[str, tuple[Stage, Cell] | None]:
    """The stages whose folders a function takes."""
    return {name: _INPUTS[name](cell) for name in _parameters(work) if name in _INPUTS}


def arguments(work: Work, cell: Cell, *, folders: dict[str, Path], unfinished: Path) -> dict[str, Any]:
    """What to call a function with, but for what its process gives it.

    Args:
        folders: of the stage's inputs.
        unfinished: file in which it may keep what it needs to go on after it was killed.
    """
    found = {name: folders.get(name) for name in inputs_of(work, cell)}
    kept = {"unfinished": unfinished} if "unfinished" in _parameters(work) else {}
    return settings_of(work, cell) | found | kept


def needs(cell: Cell, stage: Stage | None = None) -> list[tuple[Stage, Cell]]:
    """A stage of a cell, and every stage that it rests on, in order; also those of its fp32 twin.

    Args:
        stage: None for its measurement. Where the engine cannot run, its files are inspected instead.
    """
    found: dict[tuple[str, str], tuple[Stage, Cell]] = {}

    def add(stage: Stage, of: Cell) -> None:
        if (known := (stage.name, stage.key_of(of))) not in found:
            for source in stage.inputs(of).values():
                add(*source)
            found[known] = stage, of

    add(stage or last(cell), cell)
    return list(found.values())


def key_of(cell: Cell) -> str:
    """What a cell is known by: the key of its last stage. Figures of unlike machines never share one."""
    return last(cell).key_of(cell)


def last(cell: Cell) -> Stage:
    """The stage that a cell ends with."""
    if not cell.target.here:
        return MEASUREMENT_THERE
    return INSPECTION if cell.cannot_run() else MEASUREMENT


def _identity(setting: Any) -> Any:
    return identity(setting) if dataclasses.is_dataclass(setting) else setting


def _classes(settings: Iterable[Any]) -> list[type]:
    """Classes of settings and of the settings in them, but those that are numbers or names."""
    return list(dict.fromkeys(_classes_in(settings)))


def _classes_in(values: Iterable[Any]) -> Iterator[type]:
    for value in values:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield type(value)
            yield from _classes_in(getattr(value, field.name) for field in dataclasses.fields(value))
        elif isinstance(value, tuple | list):
            yield from _classes_in(value)
        elif isinstance(value, dict):
            yield from _classes_in(value.values())
