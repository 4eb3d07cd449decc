"""What is to be done with each cell: run, lower, reuse or skip."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from bitsweep import stages
from bitsweep.cell import Cell
from bitsweep.naming import Asked, wrong_names
from bitsweep.options import Options
from bitsweep.runtime.fingerprint import files_seen_once
from bitsweep.runtime.store import Store
from bitsweep.text import plain

if TYPE_CHECKING:
    from mlflow.entities import Run


class Finished(NamedTuple):
    """What MLflow knows of cells, by their keys."""

    #: The runs in which they were finished.
    runs: Mapping[str, str]
    #: Those that were finished and are to be measured again.
    again: Collection[str] = ()

    @classmethod
    def of(cls, runs: "Mapping[str, Run]", options: Options) -> "Finished":
        """What the latest runs of some cells say, by the cells' keys."""
        return cls(
            {key: run.info.run_id for key, run in runs.items()},
            {key for key, run in runs.items() if options.measures_again(run.data.tags)},
        )


#: Of cell keys, those that were finished.
FinishedRuns = Callable[[Collection[str]], Finished]

#: Verdicts on cells that there is work on.
TO_DO = ("run", "lower")


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A cell with its verdict.

    Attributes:
        verdict: ``run``, ``lower`` (its engine can be made here and not run), ``reuse`` (done before) or ``skip``.
        reason: why it is not run, with the hint.
        seconds: how long it will take by earlier runs; None where nothing alike has been run.
        trains: whether it is the first cell that needs its baseline, which is not there yet.
        run_id: of the MLflow run that it was finished in; empty where that is not known.
    """

    cell: Cell
    verdict: Literal["run", "lower", "reuse", "skip"]
    reason: str = ""
    seconds: float | None = None
    trains: bool = False
    run_id: str = ""

    @property
    def identity(self) -> str:
        """What no two cells of a plan share."""
        return self.cell.name + self.reason if self.verdict == "skip" else stages.key_of(self.cell)


def plan(
    cells: Sequence[Cell],
    store: Store,
    finished: FinishedRuns | None,
    *,
    shared: Collection[tuple[str, str]] = (),
) -> list[Planned]:
    """Decide for each cell whether to run, lower, reuse or skip it. Duplicates are dropped; nothing is computed.

    Args:
        finished: None to judge by the store of artifacts alone.
        shared: kind and key of results that need not be made, since they can be fetched.

    Returns:
        The cells in the order in which to run them: those that need a new baseline first.

    Raises:
        StoreError: there can be no store, or nothing can be written to it.
    """
    store.require_folder()
    planned: dict[str, Planned] = {}
    counted = {*shared}
    reasons = [cell.skip_reason() for cell in cells]
    with files_seen_once():
        keys = {stages.key_of(cell) for cell, reason in zip(cells, reasons, strict=True) if not reason}
    known = None if finished is None else finished(keys)
    for cell, reason in zip(cells, reasons, strict=True):
        if reason:
            skipped = Planned(cell=cell, verdict="skip", reason=reason)
            planned[skipped.identity] = skipped
        elif stages.key_of(cell) not in planned:
            judged = _judge(cell, store, known, counted)
            planned[judged.identity] = judged
    return sorted(planned.values(), key=lambda each: not each.trains)


def _judge(cell: Cell, store: Store, known: Finished | None, counted: set[tuple[str, str]]) -> Planned:
    needs, key, cannot_run = stages.needs(cell), stages.key_of(cell), cell.cannot_run()
    if known is None and store.find(needs[-1][0].name, key):
        return Planned(cell=cell, verdict="reuse", reason="lowered before" if cannot_run else "measured before")
    if known and key in known.runs and key not in known.again:
        done = "lowered" if cannot_run else "finished"
        return Planned(cell=cell, verdict="reuse", reason=f"{done} in run {known.runs[key]}", run_id=known.runs[key])
    missing = [
        (stage, each)
        for stage, each in needs
        if (stage.name, stage.key_of(each)) not in counted and not store.find(stage.name, stage.key_of(each))
    ]
    if known and key in known.again and needs[-1] not in missing:
        missing.append(needs[-1])
    trains = any(stage is stages.BASELINE for stage, _ in missing)
    if trains and (reason := cell.cannot_train()):
        return Planned(cell=cell, verdict="skip", reason=reason)
    counted.update((stage.name, stage.key_of(each)) for stage, each in missing)
    estimates = [store.estimate(stage.name, stage.about(each)) for stage, each in missing]
    return Planned(
        cell=cell,
        verdict="lower" if cannot_run else "run",
        reason=cannot_run or "",
        seconds=None if None in estimates else sum(estimate or 0 for estimate in estimates),
        trains=trains,
    )


def with_names_checked(planned: Sequence[Planned], known: dict[Asked, str]) -> list[Planned]:
    """A plan that skips cells which name outputs or layers that their networks do not have.

    Args:
        known: see `wrong_names`.
    """
    wrong = wrong_names((each.cell for each in planned if each.verdict in TO_DO), known)
    return [
        replace(each, verdict="skip", reason=wrong[each.cell], trains=False) if each.cell in wrong else each
        for each in planned
    ]


def describe(planned: Sequence[Planned]) -> str:
    """The plan as text: a line a cell, the baselines to be trained, and a time estimate where there is one."""
    names = names_of([each.cell for each in planned])
    width = max(map(len, names), default=0)
    times = [each.seconds for each in planned if each.verdict in TO_DO]
    lines = []
    for name, each in zip(names, planned, strict=True):
        estimate = f"about {duration(each.seconds)}" if each.seconds is not None else "no estimate yet"
        lines.append(f"{each.verdict:<6} {name:<{width}}  {plain(each.reason) or estimate}")
    counted = {word: sum(each.verdict == word for each in planned) for word in ("run", "lower", "reuse", "skip")}
    counts = ", ".join(f"{count} {word}" for word, count in counted.items() if count or word != "lower")
    baselines = Counter(f"{each.cell.model.name} on {each.cell.dataset.name}" for each in planned if each.trains)
    training = [f"{name} ({count} times)" if count > 1 else name for name, count in baselines.items()]
    cells = f"{len(planned)} cell{'s' * (len(planned) != 1)}"
    lines.append(f"{cells}: {counts}; baselines to train: {', '.join(training) or 'none'}")
    if times and None not in times:
        lines.append(f"estimated time: {duration(sum(seconds or 0 for seconds in times))}")
    return "\n".join(lines)


def names_of(cells: Sequence[Cell], stage: str = "cell") -> list[str]:
    """Names of cells, or of their baselines where that is the stage, with the knobs in which they differ."""
    choices = [cell.choices for cell in cells]
    if stage == stages.BASELINE.name:
        names = [f"baseline {cell.model.name} on {cell.dataset.name}" for cell in cells]
        groups = ("model.", "dataset.", "train.")
        choices = [{name: value for name, value in each.items() if name.startswith(groups)} for each in choices]
    else:
        names = [cell.name for cell in cells]
    shown = {knob for cell in cells for knob in cell.shown_knobs}
    knobs = dict.fromkeys(name for each in choices for name in each if "." in name and name not in shown)
    varying = [knob for knob in knobs if len({each.get(knob) for each in choices}) > 1]
    return [
        plain(" ".join([name, *(f"{knob}={each[knob]}" for knob in varying if knob in each)]))
        for name, each in zip(names, choices, strict=True)
    ]


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
