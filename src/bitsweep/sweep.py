"""From command-line words to a report: plans a grid, runs what is missing, and always says how it ended.

This, ``run.py`` and the sweeper in ``hydra_plugins/`` are all that knows Hydra. Every Hydra start imports this module,
so heavy imports stand inside.
"""

import difflib
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import pydantic
from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field

from bitsweep import child, pipeline
from bitsweep.artifacts import Outcome
from bitsweep.axes import axis
from bitsweep.errors import BitsweepError, UsageError
from bitsweep.experiment import AXES, NAMED, Cell, bind, invalid
from bitsweep.store import Store

if TYPE_CHECKING:
    from bitsweep.report import SweepReport
    from bitsweep.tracking.entries import Entry


@axis
class Options:
    """The settings of a run that change no result, so that no key contains them.

    Attributes:
        plan: only tell what would be run.
        stage: how far to go: ``cell`` measures, ``baseline`` only trains.
        store: folder of the artifact store.
        timeout_s: seconds that compressing, lowering and each measuring pass may take.
        memory_gb: how far the data of such a process may grow, in 10^9 bytes; 0 for any.
    """

    plan: bool = False
    stage: Literal["cell", "baseline"] = "cell"
    store: Path = Path("multirun/store")
    timeout_s: Annotated[float, Field(gt=0)] = 3600
    memory_gb: Annotated[float, Field(ge=0)] = 0


_OPTIONS = tuple(Options.__dataclass_fields__)
#: What stands at the top of a configuration, Hydra's own settings apart.
_KEYS = (*AXES, "scale", "seed", "data", *_OPTIONS)


def read(config: DictConfig, words: Sequence[str]) -> tuple[Cell, Options]:
    """Bind a composed configuration; no part of it travels further.

    Args:
        words: the command-line words that it was composed from.

    Raises:
        ConfigError: naming key, value and what is allowed.
    """
    plain = {str(name): config[name] for name in config if name != "hydra"}
    plain = {
        name: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for name, v in plain.items()
    }
    options = {name: plain.pop(name) for name in _OPTIONS}
    try:
        checked = Options(**options)
    except pydantic.ValidationError as error:
        raise invalid(Options, error) from None
    kept = tuple(word for word in words if word.split("=")[0].lstrip("+~") not in _OPTIONS)
    return bind(plain, kept), checked


# --------------------------------------------------------------------------- planning

#: Verdicts on cells that there is work on.
_TO_DO = ("run", "lower")


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A cell with its verdict.

    Attributes:
        verdict: ``run``, ``lower`` (its engine can be made here and not run), ``reuse`` (done before) or ``skip``.
        reason: why it is not run, with the cure.
        seconds: how long it will take by earlier runs; None where nothing alike has been run.
        trains: whether it is the first cell that needs its baseline, which is not there yet.
    """

    cell: Cell
    verdict: Literal["run", "lower", "reuse", "skip"]
    reason: str = ""
    seconds: float | None = None
    trains: bool = False


def plan(cells: Sequence[Cell], store: Store, finished: Mapping[str, str] | None) -> list[Planned]:
    """Decide for each cell whether to run, lower, reuse or skip it. Duplicates are dropped; nothing is computed.

    Args:
        finished: cell key -> MLflow run of every finished cell; None to judge by the store of artifacts alone.

    Returns:
        The cells in the order in which to run them: those that need a new baseline first.
    """
    planned: dict[str, Planned] = {}
    counted: set[tuple[str, str]] = set()
    for cell in cells:
        if reason := cell.obstacle():
            planned[cell.name + reason] = Planned(cell=cell, verdict="skip", reason=reason)
        elif cell.key not in planned:
            planned[cell.key] = _judge(cell, store, finished, counted)
    return sorted(planned.values(), key=lambda each: not each.trains)


def _judge(cell: Cell, store: Store, finished: Mapping[str, str] | None, counted: set[tuple[str, str]]) -> Planned:
    needs, cannot_run = pipeline.needs(cell), cell.backend.cannot_run()
    if finished is None and store.find(needs[-1][0].name, cell.key):
        return Planned(cell=cell, verdict="reuse", reason="lowered before" if cannot_run else "measured before")
    if finished and cell.key in finished:
        done = "lowered" if cannot_run else "finished"
        return Planned(cell=cell, verdict="reuse", reason=f"{done} in run {finished[cell.key]}")
    missing = []
    for stage, each in needs:
        identity = stage.name, stage.key_of(each)
        if identity not in counted and not store.find(*identity):
            counted.add(identity)
            missing.append((stage, each))
    estimates = [store.estimate(stage.name, stage.about(each)) for stage, each in missing]
    return Planned(
        cell=cell,
        verdict="lower" if cannot_run else "run",
        reason=cannot_run or "",
        seconds=None if None in estimates else sum(estimate or 0 for estimate in estimates),
        trains=any(stage is pipeline.BASELINE for stage, _ in missing),
    )


def describe(planned: Sequence[Planned]) -> str:
    """The plan as text: a line a cell, the baselines to be trained, and a time estimate where there is one."""
    names = _names([each.cell for each in planned])
    width = max(map(len, names), default=0)
    times = [each.seconds for each in planned if each.verdict in _TO_DO]
    lines = []
    for name, each in zip(names, planned, strict=True):
        estimate = f"about {_duration(each.seconds)}" if each.seconds is not None else "no estimate yet"
        lines.append(f"{each.verdict:<6} {name:<{width}}  {each.reason or estimate}")
    counted = {word: sum(each.verdict == word for each in planned) for word in ("run", "lower", "reuse", "skip")}
    counts = ", ".join(f"{count} {word}" for word, count in counted.items() if count or word != "lower")
    baselines = Counter(f"{each.cell.model.name} on {each.cell.dataset.name}" for each in planned if each.trains)
    training = [f"{name} ({count} times)" if count > 1 else name for name, count in baselines.items()]
    lines.append(f"{len(planned)} cells: {counts}; baselines to train: {', '.join(training) or 'none'}")
    if times and None not in times:
        lines.append(f"estimated time: {_duration(sum(seconds or 0 for seconds in times))}")
    return "\n".join(lines)


def _names(cells: Sequence[Cell]) -> list[str]:
    """Names of cells, with the knobs in which they differ."""
    axes = [cell.axes for cell in cells]
    knobs = dict.fromkeys(name for each in axes for name in each if "." in name and name not in NAMED)
    varying = [knob for knob in knobs if len({each.get(knob) for each in axes}) > 1]
    return [
        " ".join([cell.name, *(f"{knob}={each[knob]}" for knob in varying if knob in each)])
        for cell, each in zip(cells, axes, strict=True)
    ]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


# --------------------------------------------------------------------------- running

#: Runs cells as far as a stage, somewhere; gives an outcome, or the error that prevented one, for each.
Launch = Callable[[Sequence[Cell], str], Sequence[Outcome]]


def conduct(cells: Sequence[Cell], options: Options, *, command: str, folder: Path, launch: Launch) -> int:
    """Plan cells, train their baselines, run them, and report.

    Args:
        command: the words that started this, for the report.
        folder: where the report is written; its name is the sweep's id.

    Returns:
        Exit code: 0; 1 if a cell failed; 2 if every cell had to be skipped.
    """
    store = Store(options.store)
    if options.plan:
        print(describe(plan(cells, store, None)))
        return 0
    store.check()
    child.warm_up()
    from bitsweep.tracking.connection import Connection
    from bitsweep.tracking.journal import Journal
    from bitsweep.tracking.reading import read_sweep

    connection = Connection()
    journal = Journal(connection, store)
    planned = plan(cells, store, {key: run.info.run_id for key, run in connection.cells().items()})
    print(describe(planned), flush=True)
    if options.stage == "baseline":
        outcomes = launch([each.cell for each in planned if each.trains], "baseline")
        return int(any(outcome.status == "failed" for outcome in outcomes))

    entries = {each: _entry(each) for each in planned}
    run_id = journal.start_sweep(folder.name, command, list(entries.values()))
    status = "killed"
    try:
        todo = [each for each in planned if each.verdict in _TO_DO]
        first = [each.cell for each in todo if each.trains]
        # A single cell trains its baseline itself; the others must not all train the same one.
        broken = _failures(first, launch(first, "baseline")) if len(todo) > 1 else {}
        runnable = [each for each in todo if each.cell.baseline_key not in broken]
        for each in todo:
            if each not in runnable:
                entries[each] = _ended(entries[each], broken[each.cell.baseline_key])
        outcomes = launch([each.cell for each in runnable], "cell")
        for each, outcome in zip(runnable, outcomes, strict=True):
            entries[each] = _ended(entries[each], outcome)
        status = "failed" if any(entry.verdict == "failed" for entry in entries.values()) else "finished"
    finally:
        journal.update_sweep(run_id, list(entries.values()))
        paths = publish(read_sweep(connection, folder.name, folder=folder), folder)
        journal.finish_sweep(run_id, status, paths)
    if planned and all(each.verdict == "skip" for each in planned):
        return UsageError.exit_code
    return int(status != "finished")


def work(cell: Cell, options: Options, *, folder: Path, sweep_id: str) -> Outcome:
    """Run one cell as far as the options say, and log it to MLflow.

    Args:
        folder: where the log of its processes is written.
    """
    from bitsweep.tracking.connection import Connection
    from bitsweep.tracking.journal import Journal

    store = Store(options.store)
    workshop = pipeline.Workshop(
        store=store, log=folder / "log.txt", timeout_s=options.timeout_s, memory_gb=options.memory_gb
    )
    journal = Journal(Connection(), store)
    outcome = (pipeline.train if options.stage == "baseline" else pipeline.run)(cell, workshop)
    try:
        trained = store.find(pipeline.BASELINE.name, cell.baseline_key)
        baseline_run_id = journal.log_baseline(cell) if trained else ""
        if options.stage == "cell":
            run_id = journal.log_cell(cell, outcome, sweep_id=sweep_id, baseline_run_id=baseline_run_id)
            outcome = replace(outcome, run_id=run_id)
    except BitsweepError as error:
        outcome = replace(outcome, status="failed", reason=str(error))
    print(_summary(cell, outcome, options.stage), flush=True)
    return outcome


def _summary(cell: Cell, outcome: Outcome, stage: str) -> str:
    name = cell.name if stage == "cell" else f"baseline {cell.model.name} on {cell.dataset.name}"
    ended = f"{outcome.status:<10}{name}"
    if outcome.status == "failed":
        return f"{ended}: {outcome.reason}"
    metrics = outcome.measurement.metrics if outcome.measurement else {}
    figures = [f"top-1 {100 * metrics['top1']:.2f} %"] if "top1" in metrics else []
    figures += [f"{metrics['latency_p50_ms']:.3g} ms"] if "latency_p50_ms" in metrics else []
    figures += [f"{metrics['size_mb']:.3g} MB"] if "size_mb" in metrics else []
    figures += [_duration(sum(outcome.seconds.values())), *filter(None, [outcome.reason])]
    return f"{ended}: {', '.join(figures)}"


def _failures(cells: Sequence[Cell], outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
    return {
        cell.baseline_key: replace(outcome, reason=f"its baseline could not be trained: {outcome.reason}")
        for cell, outcome in zip(cells, outcomes, strict=True)
        if outcome.status == "failed"
    }


def _entry(planned: Planned) -> "Entry":
    from bitsweep.tracking.entries import Entry

    cell, skipped = planned.cell, planned.verdict == "skip"
    return Entry(
        cell=cell.axes,
        key="" if skipped else cell.key,
        baseline_key="" if skipped else cell.baseline_key,
        scheme="" if skipped else str(cell.scheme),
        command=cell.command,
        verdict=planned.verdict,
        reason=planned.reason if skipped else "",
    )


def _ended(entry: "Entry", outcome: Outcome) -> "Entry":
    return replace(entry, verdict=outcome.status, reason=outcome.reason, log_tail=outcome.log_tail)


def publish(report: "SweepReport", folder: Path) -> list[Path]:
    """Print a report's table and write its files."""
    from rich.console import Console

    from bitsweep.report import table, write

    paths = write(report, folder)
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table(report, width=console.width))
    print(f"report: {folder / 'report.html'}    compare: bitsweep ui")
    return paths


# --------------------------------------------------------------------------- Hydra


def run_job(config: DictConfig) -> Outcome | None:
    """What Hydra runs: a cell on its own, or a job of a sweep.

    Returns:
        The outcome of a job of a sweep. A cell on its own ends the program with its exit code instead.
    """
    hydra = HydraConfig.get()
    cell, options = read(config, hydra.overrides.task)
    folder = Path(hydra.runtime.output_dir)
    if hydra.mode == RunMode.MULTIRUN:
        return work(cell, options, folder=folder, sweep_id=Path(hydra.sweep.dir).name)

    def launch(cells: Sequence[Cell], stage: str) -> list[Outcome]:
        return [work(each, options, folder=folder, sweep_id=folder.name) for each in cells]

    sys.exit(conduct([cell], options, command=command_of(sys.argv), folder=folder, launch=launch))


def command_of(argv: Sequence[str]) -> str:
    """The command that started this program, as a user would type it."""
    return shlex.join(["python", Path(argv[0]).name, *argv[1:]])


def explain(error: Exception) -> str:
    """A Hydra or OmegaConf error in one line: key, value, what is allowed."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
    text = "\n".join(filter(None, [str(error), str(cause) if cause else ""])).strip()
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        close = difflib.get_close_matches(choice, error.options, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{group}={choice}: no such choice; {hint}choose from {', '.join(error.options)}"
    if match := re.search(r"Ambiguous value for argument '(.+)'", text):
        return f"{match[1]}: several values are a grid; add -m, as in `python run.py -m {match[1]}`"
    if match := re.search(r"Could not override '([^']+)'", text):
        return f"{match[1]}: no such key; {_did_you_mean(match[1])}`python run.py --cfg job` prints all keys"
    return " ".join(text.split())


def _did_you_mean(key: str) -> str:
    group, _, name = key.partition(".")
    known = list(getattr(AXES.get(group, Options), "__dataclass_fields__", {})) if name else _KEYS
    close = difflib.get_close_matches(name or group, known, n=1)
    return f"did you mean {'.'.join(filter(None, [group if name else '', close[0]]))}? " if close else ""
