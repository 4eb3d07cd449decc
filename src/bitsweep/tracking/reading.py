"""Reading sweeps back: from the tracking store, and what was deleted there from the artifact store."""

import functools
import json
import shutil
import time
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from bitsweep.cell_results import measurement_by_key
from bitsweep.config.requirement import Requirements
from bitsweep.errors import UsageError
from bitsweep.evidence import PICTURES
from bitsweep.report import Baseline, Race, Row, RowStatus, SweepReport
from bitsweep.report.choice import races_that_count
from bitsweep.results import Measurement
from bitsweep.runtime.store import Store
from bitsweep.tracking.address import VARIABLE
from bitsweep.tracking.connection import AT_ONCE, Connection
from bitsweep.tracking.described import MISSING
from bitsweep.tracking.entries import RACES, Entry
from bitsweep.tracking.figures import figures_of

if TYPE_CHECKING:
    from mlflow.entities import Run

Illustrated = TypeVar("Illustrated", Row, Baseline)
#: Verdicts on cells that have figures, and what reports say of those.
_MEASURED: dict[str, RowStatus] = {"finished": "finished", "lowered": "lowered", "reuse": "reused"}


def find_sweep(connection: Connection, word: str) -> "Run":
    """The run of a sweep.

    Args:
        word: its id, its folder, the id of its run in MLflow, or ``latest`` or ``previous``, the one before.

    Raises:
        UsageError: there is no such sweep.
    """
    sweeps = connection.sweeps()
    by_start = sorted(sweeps.values(), key=lambda run: int(run.info.start_time), reverse=True)
    named = {**{run.info.run_id: run for run in by_start}, **dict(zip(("latest", "previous"), by_start, strict=False))}
    found = sweeps.get(word) or named.get(word) or sweeps.get(Path(word).resolve().name)
    if found is None:
        latest = ", ".join(run.data.tags["sweep"] for run in by_start[:5])
        known = f"the latest are: {latest}" if latest else "there is none yet"
        hint = ""
        for name, run in connection.sweeps(deleted=True).items():
            if {word, Path(word).resolve().name} & {name, run.info.run_id}:
                how = f"{VARIABLE}={connection.uri} mlflow runs restore --run-id {run.info.run_id}"
                hint = f"; {name} was deleted, restore it: {how}"
        raise UsageError(f"{word}: no such sweep in {connection.uri}; {known}{hint}")
    return found


def read_rows(connection: Connection, sweep: "Run") -> list[Row]:
    """The cells of a sweep as rows without pictures."""
    store = _store_of(sweep)
    entries = _entries(connection, sweep, store)
    finished = _Finished(connection, store, {entry.key for entry in entries if entry.key})
    return [_row(entry, finished) for entry in entries]


def _store_of(sweep: "Run") -> Store:
    return Store(Path(sweep.data.tags.get("store", "multirun/store")))


def _entries(connection: Connection, sweep: "Run", store: Store) -> list[Entry]:
    return [Entry(**entry) for entry in _note(connection, sweep, "plan.json", store)]


def requirements_of(sweep: "Run") -> Requirements:
    """What the cells of a sweep had to keep when it was run."""
    return Requirements(**json.loads(sweep.data.tags.get("require", "{}")))


def read_sweep(
    connection: Connection,
    sweep: "Run",
    *,
    folder: Path,
    require: Requirements | None = None,
    at_hand: Mapping[str, Path] = MappingProxyType({}),
) -> SweepReport:
    """Everything that is known of a sweep, read back from MLflow, or from the store what is gone there.

    Args:
        require: what its cells must keep; None for what was asked of them when it was run.
        folder: where the report will be written; the pictures of its runs are put into ``runs/`` there.
        at_hand: run id -> folder of its pictures, of those that need not be fetched.
    """
    with connection.explained():
        store = _store_of(sweep)
        wanted = dict.fromkeys(
            entry.baseline_key for entry in _entries(connection, sweep, store) if entry.verdict != "skip"
        )
        baselines = connection.baselines(wanted)
        started = datetime.fromtimestamp(sweep.info.start_time / 1000, tz=UTC)
        report = SweepReport(
            sweep_id=sweep.data.tags["sweep"],
            command=sweep.data.tags["command"],
            started=started,
            seconds=((sweep.info.end_time or int(time.time() * 1000)) - sweep.info.start_time) / 1000,
            rows=_illustrated(connection, read_rows(connection, sweep), folder, at_hand),
            baselines=_illustrated(connection, map(_baseline, baselines.values()), folder, at_hand),
            environment=_note(connection, sweep, "environment.json", store),
            tracking_uri=connection.uri,
            ui_url=connection.ui_url,
            require=requirements_of(sweep) if require is None else require,
        )
        if (kept := _kept_note(connection, sweep, RACES, store)) is None:
            return report
        races = [Race.from_json(race) for race in kept["races"]]
        if report.require != requirements_of(sweep):
            races = races_that_count(report, races)
        return report.raced(races, kept["reason"])


def _note(connection: Connection, sweep: "Run", name: str, store: Store) -> Any:
    """What a sweep keeps in MLflow, or in the store where that was lost.

    Raises:
        UsageError: neither has it.
    """
    if (kept := _kept_note(connection, sweep, name, store)) is None:
        raise UsageError(
            f"{sweep.data.tags['sweep']}: its {name} is gone from {sweep.info.artifact_uri} and from "
            f"{store.root}; run it again: {sweep.data.tags['command']}"
        )
    return kept


def _kept_note(connection: Connection, sweep: "Run", name: str, store: Store) -> Any:
    """The same; None where neither has it."""
    if any(found.path == name for found in connection.client.list_artifacts(sweep.info.run_id)):
        return connection.read_json(sweep.info.run_id, name)
    return store.read_note(sweep.info.run_id, name)


def _illustrated(
    connection: Connection, found: Iterable[Illustrated], folder: Path, at_hand: Mapping[str, Path]
) -> list[Illustrated]:
    """The same rows or baselines, with the pictures of their runs copied into a folder: a server takes its time."""

    def illustrated(what: Illustrated) -> Illustrated:
        target, source = folder / "runs" / what.run_id, at_hand.get(what.run_id)
        if not what.run_id or not (source or connection.client.list_artifacts(what.run_id, PICTURES)):
            return what
        target.mkdir(parents=True, exist_ok=True)
        if source:
            shutil.copytree(source, target / PICTURES, dirs_exist_ok=True)
        else:
            connection.client.download_artifacts(what.run_id, PICTURES, str(target))
        return replace(what, pictures=tuple(sorted((target / PICTURES).rglob("*.png"))))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(illustrated, found))


class _Finished:
    """What is known of cells that have figures: by their run, by a later one, or by the store where MLflow has none."""

    def __init__(self, connection: Connection, store: Store, keys: Collection[str]) -> None:
        self._connection, self._store = connection, store
        # Tags can be deleted, too.
        self._latest = {key: run for key, run in connection.cells(keys).items() if "status" in run.data.tags}

    def run_of(self, entry: Entry) -> "Run | None":
        latest = self._latest.get(entry.key)
        if not entry.run_id or (latest and latest.info.run_id == entry.run_id):
            return latest
        own = self._connection.run(entry.run_id)
        return own if own and "status" in own.data.tags else latest

    def measurement_of(self, entry: Entry) -> Measurement | None:
        if entry.verdict not in _MEASURED:
            return None
        return measurement_by_key(entry.key, self._store)


def _row(entry: Entry, finished: _Finished) -> Row:
    run = None if entry.verdict in ("skip", "failed") else finished.run_of(entry)
    row = functools.partial(
        Row, cell=entry.cell, scheme=entry.scheme, command=entry.command, shown=tuple(entry.shown),
        confidence=entry.confidence, batch=entry.batch, settings=entry.settings,
    )  # fmt: skip
    if run is None and (measured := finished.measurement_of(entry)):
        return row(
            status=_MEASURED[entry.verdict],
            reason=entry.reason,
            metrics=measured.metrics,
            flags=measured.flags,
            verdict=measured.verdict,
            findings=measured.findings,
        )
    status: RowStatus
    reason = entry.reason
    if entry.verdict in ("skip", "failed"):
        status = "skipped" if entry.verdict == "skip" else "failed"
    elif run is not None and run.data.tags.get("status") == "lowered":
        status = "lowered"
    elif run is not None:
        status = "reused" if entry.verdict == "reuse" else "finished"
    else:
        status = "interrupted"
        if entry.verdict in _MEASURED:
            reason = f"its run is gone from MLflow, and what it measured from the store; run {entry.command}"
    tags = run.data.tags if run else {}
    return row(
        status=status,
        reason=reason or tags.get("reason", ""),
        log_tail=entry.log_tail,
        metrics=figures_of(run) if run else {},
        flags=tuple(flag for flag in tags.get("flags", "").split(", ") if flag),
        verdict=tags.get("verdict", ""),
        findings=(*tags.get("findings", "").splitlines(), *_missing(tags.get(MISSING, ""))),
        run_id=run.info.run_id if run else "",
    )


def _missing(files: str) -> list[str]:
    return [f"{files}; the same command makes them again"] if files else []


def _baseline(run: "Run") -> Baseline:
    metrics = figures_of(run)
    return Baseline(
        name=run.info.run_name, run_id=run.info.run_id, metrics=metrics, seconds=metrics.get("train_s", 0.0)
    )
