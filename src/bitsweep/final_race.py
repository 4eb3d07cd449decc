"""The final race of a sweep: the fastest cells of a network, each on another engine, run in turn when all are measured.

Latencies of different minutes rank engines wrongly. A race is kept by the key of what ran in it.
"""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bitsweep.cell import Cell
from bitsweep.config.configurable import identity
from bitsweep.config.protocol import MeasurementProtocol
from bitsweep.errors import BitsweepError
from bitsweep.measuring import race as racing
from bitsweep.measuring.timing import PAUSE_S
from bitsweep.pipeline import StageRunner
from bitsweep.report import Race, Row, SweepReport
from bitsweep.report.choice import by_dataset, finalists
from bitsweep.report.twins import twin_of
from bitsweep.runtime import child, fingerprint
from bitsweep.runtime.machine import private_folder, working
from bitsweep.stages import ARTIFACT, MEASUREMENT

#: Kind of its results in the store.
RACE = "race"
_SCRATCH = "race-"


@dataclass(frozen=True, kw_only=True)
class _Starter:
    """A cell that is to race.

    Attributes:
        choices: its own, by which a report knows it.
        shown_by: the cell whose measurement has images for it: it, or one that was compressed from it.
    """

    choices: dict[str, str]
    cell: Cell
    shown_by: Cell


def hold_races(
    report: SweepReport, cells: Iterable[Cell], runner: StageRunner, remeasure: str
) -> tuple[list[Race], str]:
    """Let the finalists of each network race, unless the very same have.

    Args:
        cells: those that were measured in the sweep.
        remeasure: which races to repeat: ``none``, those that are ``noisy``, or ``all``.

    Returns:
        The races, and why one could not be held; empty if all could.
    """
    known = {frozenset(cell.choices.items()): cell for cell in cells}
    races, reasons = [], []
    for rows in by_dataset(report).values():
        for heat in finalists(rows, report.require):
            starters = [starter for row in heat if (starter := _starter(row, known, runner))]
            most = starters[0].cell.protocol.final if starters else 0
            if most < 2 or len(starters) < 2:
                continue
            try:
                races.append(_race(starters[:most], runner, remeasure=remeasure))
            except BitsweepError as error:
                reasons.append(str(error))
    return races, "; ".join(dict.fromkeys(reasons))


def _starter(row: Row, known: dict[frozenset[tuple[str, str]], Cell], runner: StageRunner) -> _Starter | None:
    """What a row races with; None where another machine measured it, or its files are not in the store any more."""
    measured = known.get(frozenset(row.cell.items()))
    if row.in_grid:
        shown_by = measured
    else:
        shown_by = next((cell for choices, cell in known.items() if twin_of(dict(choices)) == row.cell), None)
    if shown_by is None or not shown_by.target.here:
        return None
    cell = shown_by if row.in_grid else shown_by.twin
    store = runner.store
    if not store.find(ARTIFACT.name, ARTIFACT.key_of(cell)):
        return None
    if not store.find(MEASUREMENT.name, MEASUREMENT.key_of(shown_by)):
        return None
    return _Starter(choices=row.cell, cell=cell, shown_by=shown_by)


def _race(starters: Sequence[_Starter], runner: StageRunner, *, remeasure: str) -> Race:
    """The race of some cells, the winner first."""
    store, key, protocol = runner.store, _key(starters), starters[0].cell.protocol
    folder = store.find(RACE, key)
    if folder:
        noisy = any(time.noisy for time in racing.times(folder, confidence=protocol.confidence))
        if remeasure == "all" or (remeasure == "noisy" and noisy):
            store.discard(RACE, key)
            folder = None
    if folder is None:
        _run(starters, runner, key)
        folder = store.folder(RACE, key)
    done = racing.times(folder, confidence=protocol.confidence)
    order = sorted(range(len(starters)), key=lambda i: done[i].p50_ms)
    return Race(cells=tuple(starters[i].choices for i in order), times=tuple(done[i] for i in order))


def _key(starters: Sequence[_Starter]) -> str:
    return fingerprint.digest(
        RACE,
        [[ARTIFACT.key_of(each.cell), MEASUREMENT.key_of(each.shown_by)] for each in starters],
        identity(starters[0].cell.protocol),
        fingerprint.code(racing.race, *(type(each.cell.backend) for each in starters)),
    )


def _run(starters: Sequence[_Starter], runner: StageRunner, key: str) -> None:
    store = runner.store
    entrants = tuple(
        racing.Entrant(
            artifact=store.folder(ARTIFACT.name, ARTIFACT.key_of(each.cell)),
            backend=each.cell.backend,
            examples=store.folder(MEASUREMENT.name, MEASUREMENT.key_of(each.shown_by)) / "examples.npy",
        )
        for each in starters
    )
    rests_on = [(MEASUREMENT.name, MEASUREMENT.key_of(each.shown_by)) for each in starters]
    about = {"model": starters[0].cell.model.name, "dataset": starters[0].cell.dataset.name}
    names = ", ".join(each.cell.name for each in starters)
    with store.building(RACE, key, about=about, rests_on=rests_on) as folder, working(quiet=True):
        if folder is None:
            return
        print(f"final race: {names}", flush=True)
        with _scratch() as scratch:
            quietest = _until_quiet(entrants, starters[0].cell.protocol, runner, scratch)
            shutil.copytree(quietest, folder, dirs_exist_ok=True)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """An empty folder for a race. Only one is run at a time, so what is left there is of one that was killed."""
    place = private_folder()
    for left in place.glob(f"{_SCRATCH}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=place) as folder:
        yield Path(folder)


def _until_quiet(
    entrants: tuple[racing.Entrant, ...], protocol: MeasurementProtocol, runner: StageRunner, scratch: Path
) -> Path:
    """Race until the machine was quiet, or the repeats are used up; returns what the quietest attempt left."""
    attempts: dict[Path, tuple[bool, float]] = {}
    most = 1 + protocol.repeats
    while len(attempts) < most:
        folder, lanes = (scratch / f"{name}{len(attempts)}" for name in ("race", "lanes"))
        for each in (folder, lanes):
            each.mkdir()
        racing.prepare(lanes, len(entrants))
        child.call(
            racing.race,
            {"entrants": entrants, "protocol": protocol, "lanes": lanes},
            folder=folder,
            log=runner.log,
            processes=len(entrants),
            timeout_s=runner.timeout_s,
            memory_gb=runner.memory_gb,
        )
        attempts[folder] = crowded, badness = racing.unrest(folder)
        if badness <= 1:
            break
        if crowded and len(attempts) < most:
            time.sleep(PAUSE_S)
    return min(attempts, key=lambda folder: attempts[folder])
