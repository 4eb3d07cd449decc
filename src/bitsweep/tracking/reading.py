"""Reading sweeps and artifacts back, from the tracking store alone."""

import json
import shutil
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bitsweep.deploy.facts import FOLDER
from bitsweep.errors import UsageError
from bitsweep.evidence import PICTURES
from bitsweep.report import Baseline, Row, RowStatus, SweepReport
from bitsweep.tracking.connection import Connection
from bitsweep.tracking.entries import Entry
from bitsweep.tracking.logger import MISSING

if TYPE_CHECKING:
    from mlflow.entities import Run

Illustrated = TypeVar("Illustrated", Row, Baseline)


def find_sweep(connection: Connection, sweep_id: str) -> "Run":
    """The run of a sweep.

    Raises:
        UsageError: there is no such sweep.
    """
    sweeps = connection.sweeps()
    if sweep_id not in sweeps:
        known = ", ".join(sorted(sweeps)[-5:]) or "none yet"
        raise UsageError(f"SWEEP_ID={sweep_id}: no such sweep in {connection.uri}; the latest are: {known}")
    return sweeps[sweep_id]


def read_sweep(connection: Connection, sweep: "Run", *, folder: Path) -> SweepReport:
    """Everything that is known of a sweep, read back from MLflow alone.

    Args:
        folder: where the report will be written; the pictures of its runs are put into ``runs/`` there.
    """
    with connection.explained():
        entries = [Entry(**entry) for entry in connection.read_json(sweep.info.run_id, "plan.json")]
        finished = connection.cells()
        baselines = connection.baselines()
        wanted = dict.fromkeys(entry.baseline_key for entry in entries if entry.verdict != "skip")
        started = datetime.fromtimestamp(sweep.info.start_time / 1000, tz=UTC)
        return SweepReport(
            sweep_id=sweep.data.tags["sweep"],
            command=sweep.data.tags["command"],
            started=started,
            seconds=((sweep.info.end_time or int(time.time() * 1000)) - sweep.info.start_time) / 1000,
            rows=[_illustrated(connection, _row(entry, finished.get(entry.key)), folder) for entry in entries],
            baselines=[
                _illustrated(connection, _baseline(baselines[key]), folder) for key in wanted if key in baselines
            ],
            environment=connection.read_json(sweep.info.run_id, "environment.json"),
            tracking_uri=connection.uri,
            compare_url=connection.comparison_path,
        )


def download_bundle(connection: Connection, run_id: str, folder: Path) -> None:
    """Write the artifact that a cell measured, and the facts about it, into a folder, which is created.

    Raises:
        UsageError: there is no such run, it measured nothing, or the folder is not empty.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder}: is not empty; name a new folder")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made ({error.strerror}); name a new folder that can be") from error
    with connection.explained():
        try:
            run = connection.client.get_run(run_id)
        except MlflowException as error:
            raise UsageError(
                f"RUN_ID={run_id}: no such run in {connection.uri}; the report's cells.csv has them"
            ) from error
        if run.data.tags.get("kind") != "cell" or run.data.tags.get("status") != "finished":
            raise UsageError(f"RUN_ID={run_id}: not the run of a finished cell; cells.csv of a report has them")
        with tempfile.TemporaryDirectory() as scratch:
            shutil.copytree(connection.client.download_artifacts(run_id, FOLDER, scratch), folder, dirs_exist_ok=True)
            _tell_command(run.data.tags["command"], folder / "bundle.json")
            models = run.outputs.model_outputs if run.outputs else []
            if models:
                files = mlflow.artifacts.download_artifacts(
                    f"models:/{models[0].model_id}", dst_path=scratch, tracking_uri=connection.uri
                )
                shutil.copy(Path(files) / "model.onnx", folder)
            else:
                files = connection.client.download_artifacts(run_id, "model", scratch)
                shutil.copytree(files, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))


def _tell_command(command: str, file: Path) -> None:
    """Write into the facts of a bundle which command made it."""
    file.write_text(json.dumps(json.loads(file.read_text()) | {"command": command}, indent=2))


def _illustrated(connection: Connection, what: Illustrated, folder: Path) -> Illustrated:
    """The same row or baseline, with the pictures of its run copied into a folder."""
    if not what.run_id or not connection.client.list_artifacts(what.run_id, PICTURES):
        return what
    target = folder / "runs" / what.run_id
    target.mkdir(parents=True, exist_ok=True)
    connection.client.download_artifacts(what.run_id, PICTURES, str(target))
    return replace(what, pictures=tuple(sorted((target / PICTURES).rglob("*.png"))))


def _row(entry: Entry, run: "Run | None") -> Row:
    status: RowStatus
    if entry.verdict == "skip":
        status = "skipped"
    elif run is not None and run.data.tags["status"] == "lowered":
        status = "lowered"
    elif run is not None:
        status = "reused" if entry.verdict == "reuse" else "finished"
    else:
        status = "failed" if entry.verdict == "failed" else "interrupted"
    tags = run.data.tags if run else {}
    return Row(
        cell=entry.cell,
        status=status,
        reason=entry.reason or tags.get("reason", ""),
        log_tail=entry.log_tail,
        metrics=dict(run.data.metrics) if run else {},
        flags=tuple(flag for flag in tags.get("flags", "").split(", ") if flag),
        verdict=tags.get("verdict", ""),
        findings=(*tags.get("findings", "").splitlines(), *_missing(tags.get(MISSING, ""))),
        scheme=entry.scheme,
        command=entry.command,
        confidence=entry.confidence,
        batch=entry.batch,
        run_id=run.info.run_id if run else "",
    )


def _missing(files: str) -> list[str]:
    return [f"{files}; the same command makes them again"] if files else []


def _baseline(run: "Run") -> Baseline:
    metrics = dict(run.data.metrics)
    return Baseline(
        name=run.info.run_name, run_id=run.info.run_id, metrics=metrics, seconds=metrics.get("train_s", 0.0)
    )
