"""All that is known of MLflow: one flat run a baseline, a cell and a sweep, found again by their keys.

Runs are created when their work is done, so that a killed process leaves none half written; those that a process
killed in between has left RUNNING are ended by the next one that starts.
"""

import contextlib
import json
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from bitsweep import bundle, environment, pipeline
from bitsweep.artifacts import Curve, Measurement, Outcome, Table
from bitsweep.errors import TrackingError, UsageError
from bitsweep.experiment import Cell
from bitsweep.fingerprint import settings
from bitsweep.report import Baseline, Row, RowStatus, SweepReport
from bitsweep.report.cell import Evidence, draw_cell
from bitsweep.report.training import draw_training
from bitsweep.scores import scores
from bitsweep.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

EXPERIMENT = "bitsweep"
#: Folder of a run's artifacts that its pictures are in.
PICTURES = "pictures"
Illustrated = TypeVar("Illustrated", Row, Baseline)
_COMPARISON = "workflowType=machine_learning&compareRunsMode=CHART"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a sweep's plan, and how it ended. Kept as an artifact of the sweep's run.

    Attributes:
        verdict: ``run``, ``lower``, ``reuse`` or ``skip`` when planned; ``finished``, ``lowered`` or ``failed`` later.
    """

    cell: dict[str, str]
    key: str
    baseline_key: str
    scheme: str
    command: str
    verdict: str
    reason: str = ""
    log_tail: str = ""


class Tracker:
    """A connection to the tracking store: ``MLFLOW_TRACKING_URI``, or MLflow's default in the working directory."""

    def __init__(self, store: Store) -> None:
        """Connect, create database and experiment where they are missing, and end runs that a killed process left.

        Raises:
            TrackingError: the tracking store does not answer or cannot be written.
        """
        # A server that is not there must be noticed within seconds, not after MLflow's minutes of patience.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        import mlflow

        for chatty in ("mlflow", "alembic"):
            logging.getLogger(chatty).setLevel(logging.ERROR)
        self._store = store
        self.uri: str = mlflow.get_tracking_uri()
        with self._explained():
            _create_database(self.uri)
            self.client: MlflowClient = mlflow.MlflowClient()
            found = self.client.get_experiment_by_name(EXPERIMENT)
            self.experiment_id: str = found.experiment_id if found else self.client.create_experiment(EXPERIMENT)
            self._end_abandoned()

    @property
    def comparison_path(self) -> str:
        """Where, under the address of the MLflow UI, the cells are compared as charts."""
        return f"#/experiments/{self.experiment_id}/runs?{_COMPARISON}"

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise TrackingError(
                f"MLFLOW_TRACKING_URI={self.uri}: the tracking store cannot be used ({reason}); start it, make it "
                "writable, or unset MLFLOW_TRACKING_URI to use mlflow.db in this folder"
            ) from error

    # ----------------------------------------------------------------------- looking up

    def _search(self, condition: str) -> "Iterable[Run]":
        token = None
        while True:
            page = self.client.search_runs([self.experiment_id], condition, max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def finished(self) -> dict[str, str]:
        """Cell key -> run id of every cell that was finished, or lowered where its engine cannot run."""
        with self._explained():
            return {key: run.info.run_id for key, run in self._finished_runs().items()}

    def _finished_runs(self) -> "dict[str, Run]":
        """Cell key -> its run that was finished or lowered; it may have others, that failed."""
        condition = "tags.kind = 'cell' and attributes.status = 'FINISHED'"
        return {run.data.tags["cell_key"]: run for run in self._search(condition)}

    def _baseline_runs(self) -> "dict[str, Run]":
        return {run.data.tags["baseline_key"]: run for run in self._search("tags.kind = 'baseline'")}

    def _end_abandoned(self) -> None:
        for run in self._search("attributes.status = 'RUNNING'"):
            tags = run.data.tags
            if tags.get("host") == socket.gethostname() and not _alive(tags.get("process", "")):
                self.client.set_terminated(run.info.run_id, "KILLED")

    # ----------------------------------------------------------------------- writing

    @contextlib.contextmanager
    def _run(self, name: str, kind: str, tags: dict[str, str], status: str, seconds: float) -> Iterator[str]:
        now = int(time.time() * 1000)
        with self._explained():
            run = self.client.create_run(
                self.experiment_id,
                start_time=now - int(seconds * 1000),
                run_name=name,
                tags={"kind": kind, "commit": environment.commit(), **_owner(), **tags},
            )
            run_id: str = run.info.run_id
            yield run_id
            self.client.set_terminated(run_id, status, end_time=now)

    def log_baseline(self, cell: Cell) -> str:
        """Log a trained baseline with its curves and checkpoint, unless it is there; returns its run id."""
        from mlflow.entities import Metric, Param

        known = self._baseline_runs().get(cell.baseline_key)
        if known and known.info.status == "FINISHED":
            return str(known.info.run_id)
        trained = pipeline.trained_of(cell, self._store)
        splits = pipeline.splits_of(cell, self._store)
        seconds = self._store.seconds("baseline", cell.baseline_key)
        tags = {"baseline_key": cell.baseline_key, "device": trained.device, "status": "finished"}
        name = f"baseline {cell.model.name} {cell.dataset.name}"
        with self._run(name, "baseline", tags, "FINISHED", seconds) as run_id:
            started = int(time.time() * 1000) - int(seconds * 1000)
            top1 = float((trained.test_logits_NK.argmax(1) == splits.test.labels).mean())
            metrics = [
                Metric(curve, float(getattr(epoch, curve)), started + int(1000 * epoch.seconds * (step + 1)), step)
                for step, epoch in enumerate(trained.history)
                for curve in ("train_loss", "val_loss", "val_top1", "lr", "seconds")
            ]
            figures = {"top1": top1, "best_epoch": trained.best_epoch, "train_s": seconds}
            if np.isfinite(trained.test_logits_NK).all():
                figures |= scores(trained.test_logits_NK, splits.test.labels)
            metrics += [Metric(figure, value, started, 0) for figure, value in figures.items()]
            params = {
                "model": cell.model.name, "dataset": cell.dataset.name, "train": cell.train.name, "seed": cell.seed,
                "image_size": cell.model.image_size, **_flat("train", cell.train),
            }  # fmt: skip
            self.client.log_batch(run_id, metrics, [Param(key, str(value)) for key, value in params.items()])
            self.client.log_dict(run_id, [asdict(epoch) for epoch in trained.history], "history.json")
            self.client.log_dict(run_id, environment.describe(), "environment.json")
            self.client.log_artifact(run_id, str(trained.checkpoint))
            if trained.history:
                with tempfile.TemporaryDirectory() as folder, pipeline.machine(quiet=False):
                    draw_training(trained.history, trained.best_epoch, Path(folder) / "training.png", name=name)
                    self.client.log_artifacts(run_id, folder, PICTURES)
            self._log_input(run_id, cell, "train")
        return run_id

    def log_cell(self, cell: Cell, outcome: Outcome, *, sweep_id: str, baseline_run_id: str = "") -> str:
        """Log how a cell ended, with its figures, evidence and model; returns its run id."""
        from mlflow.entities import Metric, Param

        measured = outcome.measurement
        status = "FAILED" if outcome.status == "failed" else "FINISHED"
        tags = {
            "cell_key": cell.key, "sweep": sweep_id, "status": outcome.status, "reason": outcome.reason[:5000],
            "baseline_run_id": baseline_run_id, "verdict": measured.verdict if measured else "",
            "flags": ", ".join(measured.flags) if measured else "",
            "findings": "\n".join(measured.findings) if measured else "", "scheme_why": cell.scheme.why,
            "arithmetic": cell.scheme.arithmetic, "command": cell.command, "isa": environment.current_cpu().isa,
            "cpu": environment.current_cpu().model,
        }  # fmt: skip
        with self._run(cell.name, "cell", tags, status, sum(outcome.seconds.values())) as run_id:
            now = int(time.time() * 1000)
            params = {
                **cell.axes, "scheme": str(cell.scheme), "device": cell.device, "image_size": cell.model.image_size,
                **_flat("method", cell.method), "threads": cell.protocol.threads or environment.physical_cores(),
            }  # fmt: skip
            seconds = {f"{stage}_s": value for stage, value in outcome.seconds.items()}
            metrics = {**seconds, **(measured.metrics if measured else {})}
            self.client.log_batch(
                run_id,
                [Metric(name, value, now, 0) for name, value in metrics.items()],
                [Param(key, str(value)) for key, value in params.items()],
            )
            self.client.log_dict(run_id, _resolved(cell), "config.json")
            self.client.log_dict(run_id, environment.describe(), "environment.json")
            if outcome.log_tail:
                self.client.log_text(run_id, outcome.log_tail, "log.txt")
            if measured:
                self._log_evidence(run_id, cell, measured)
            if outcome.status == "lowered":
                self.client.log_artifacts(run_id, str(pipeline.artifact_of(cell, self._store)), "model")
            elif measured:
                self._log_predictions(run_id, cell, measured)
        return run_id

    def _log_evidence(self, run_id: str, cell: Cell, measured: Measurement) -> None:
        """Log what was done to the layers, and what was found out about the artifact."""
        compressed = pipeline.compressed_of(cell, self._store)
        self.client.log_dict(run_id, [asdict(layer) for layer in compressed.layers], "layers.json")
        self._log_records(run_id, compressed.curves, [*compressed.tables, *measured.tables])
        self.client.log_dict(run_id, measured.notes, "notes.json")

    def _log_predictions(self, run_id: str, cell: Cell, measured: Measurement) -> None:
        """Log what the artifact computed, and the artifact."""
        folder = measured.folder
        for file in ("logits.npy", "latency_samples.npz"):
            if (folder / file).exists():
                self.client.log_artifact(run_id, str(folder / file))
        with tempfile.TemporaryDirectory() as facts:
            splits = pipeline.splits_of(cell, self._store)
            bundle.write_facts(cell, splits, np.load(folder / "logits.npy", mmap_mode="r"), Path(facts))
            self.client.log_artifacts(run_id, facts, "bundle")
        self._log_pictures(run_id, cell, measured)
        self._log_input(run_id, cell, "test")
        self._log_model(run_id, cell, folder / "examples.npy")

    def _log_pictures(self, run_id: str, cell: Cell, measured: Measurement) -> None:
        evidence = Evidence(
            name=cell.name,
            precision=cell.precision.name,
            backend=cell.backend.name,
            splits=pipeline.splits_of(cell, self._store),
            trained=pipeline.trained_of(cell, self._store),
            compressed=pipeline.compressed_of(cell, self._store),
            measurement=measured,
            batch_sizes=cell.protocol.batch_sizes,
        )
        # Drawing computes: another cell must not be timed meanwhile.
        with tempfile.TemporaryDirectory() as folder, pipeline.machine(quiet=False):
            draw_cell(evidence, Path(folder))
            self.client.log_artifacts(run_id, folder, PICTURES)

    def _log_records(self, run_id: str, curves: Sequence[Curve], tables: Sequence[Table]) -> None:
        """Log what was recorded: curves as metrics with steps, and all of it as files."""
        from mlflow.entities import Metric

        from bitsweep.report.records import write_records

        now = int(time.time() * 1000)
        metrics = [Metric(curve.name, value, now, step) for curve in curves for step, value in enumerate(curve.values)]
        for start in range(0, len(metrics), 1000):  # more are refused
            self.client.log_batch(run_id, metrics[start : start + 1000])
        with tempfile.TemporaryDirectory() as folder:
            write_records(curves, tables, Path(folder))
            if curves or tables:
                self.client.log_artifacts(run_id, folder, "records")

    def _log_model(self, run_id: str, cell: Cell, examples: Path) -> None:
        """Log the artifact: as an MLflow model where MLflow has a flavour for it, else as files."""
        artifact = pipeline.artifact_of(cell, self._store)
        if not (artifact / "model.onnx").exists():
            self.client.log_artifacts(run_id, str(artifact), "model")
            return
        import mlflow
        import mlflow.onnx
        import onnx
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        example = np.load(examples)[:1]
        classes = len(pipeline.splits_of(cell, self._store).classes)
        signature = ModelSignature(
            Schema([TensorSpec(example.dtype, (-1, *example.shape[1:]), "images")]),
            Schema([TensorSpec(np.dtype("float32"), (-1, classes), "logits")]),
        )
        with mlflow.start_run(run_id=run_id):
            mlflow.onnx.log_model(
                onnx.load(artifact / "model.onnx"),
                name="model",
                signature=signature,
                input_example=example,
                onnx_execution_providers=["CPUExecutionProvider"],
                pip_requirements=[f"onnxruntime=={environment.version_of('onnxruntime')}"],
                save_as_external_data=False,
            )

    def _log_input(self, run_id: str, cell: Cell, context: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        splits = pipeline.splits_of(cell, self._store)
        profile = {name: len(getattr(splits, name)) for name in ("train", "val", "test")}
        dataset = Dataset(
            name=cell.dataset.name,
            digest=splits.fingerprint[:36],
            source_type="code",
            source=json.dumps(settings(cell.dataset)),
            profile=json.dumps(profile | {"classes": len(splits.classes)}),
        )
        self.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    # ----------------------------------------------------------------------- sweeps

    def start_sweep(self, sweep_id: str, command: str, entries: list[Entry]) -> str:
        """Open the run of a sweep and keep its plan there, so that even a killed sweep can be reported."""
        tags = {"kind": "sweep", "sweep": sweep_id, "command": command, "status": "running", **_owner()}
        with self._explained():
            run = self.client.create_run(self.experiment_id, run_name=f"sweep {sweep_id}", tags=tags)
            self._write_entries(run.info.run_id, entries)
            self.client.log_dict(run.info.run_id, environment.describe(), "environment.json")
            return str(run.info.run_id)

    def _write_entries(self, run_id: str, entries: list[Entry]) -> None:
        self.client.log_dict(run_id, [asdict(entry) for entry in entries], "plan.json")

    def update_sweep(self, run_id: str, entries: list[Entry]) -> None:
        """Replace the kept plan by how its cells ended."""
        with self._explained():
            self._write_entries(run_id, entries)

    def finish_sweep(self, run_id: str, status: str, files: Iterable[Path]) -> None:
        """Attach the report and end the run of a sweep: ``finished``, ``failed`` or ``killed``."""
        with self._explained():
            for file in files:
                self.client.log_artifact(run_id, str(file), "report")
            self.client.set_tag(run_id, "status", status)
            self.client.set_terminated(run_id, status.upper())

    def report(self, sweep_id: str, *, folder: Path) -> SweepReport:
        """Everything that is known of a sweep, read back from MLflow alone.

        Args:
            folder: where the report will be written; the pictures of its runs are put into ``runs/`` there.

        Raises:
            UsageError: there is no such sweep.
        """
        with self._explained():
            sweeps = {run.data.tags["sweep"]: run for run in self._search("tags.kind = 'sweep'")}
            if sweep_id not in sweeps:
                known = ", ".join(sorted(sweeps)[-5:]) or "none yet"
                raise UsageError(f"SWEEP_ID={sweep_id}: no such sweep in {self.uri}; the latest are: {known}")
            sweep = sweeps[sweep_id]
            entries = [Entry(**entry) for entry in self._read_json(sweep.info.run_id, "plan.json")]
            finished = self._finished_runs()
            baselines = self._baseline_runs()
            wanted = dict.fromkeys(entry.baseline_key for entry in entries if entry.verdict != "skip")
            started = datetime.fromtimestamp(sweep.info.start_time / 1000, tz=UTC)
            return SweepReport(
                sweep_id=sweep_id,
                command=sweep.data.tags["command"],
                started=started,
                seconds=((sweep.info.end_time or int(time.time() * 1000)) - sweep.info.start_time) / 1000,
                rows=[self._illustrated(_row(entry, finished.get(entry.key)), folder) for entry in entries],
                baselines=[self._illustrated(_baseline(baselines[key]), folder) for key in wanted if key in baselines],
                environment=self._read_json(sweep.info.run_id, "environment.json"),
                tracking_uri=self.uri,
                compare_url=self.comparison_path,
            )

    def _illustrated(self, what: Illustrated, folder: Path) -> Illustrated:
        """The same row or baseline, with the pictures of its run copied into a folder."""
        if not what.run_id or not self.client.list_artifacts(what.run_id, PICTURES):
            return what
        target = folder / "runs" / what.run_id
        target.mkdir(parents=True, exist_ok=True)
        self.client.download_artifacts(what.run_id, PICTURES, str(target))
        return replace(what, pictures=tuple(sorted((target / PICTURES).rglob("*.png"))))

    def download_bundle(self, run_id: str, folder: Path) -> None:
        """Write the artifact that a cell measured, and the facts about it, into a folder, which is created.

        Raises:
            UsageError: there is no such run, it measured nothing, or the folder is not empty.
        """
        import mlflow
        from mlflow.exceptions import MlflowException

        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder}: is not empty; name a new folder")
        with self._explained():
            try:
                run = self.client.get_run(run_id)
            except MlflowException as error:
                raise UsageError(
                    f"RUN_ID={run_id}: no such run in {self.uri}; the report's cells.csv has them"
                ) from error
            if run.data.tags.get("kind") != "cell" or run.data.tags.get("status") != "finished":
                raise UsageError(f"RUN_ID={run_id}: not the run of a finished cell; cells.csv of a report has them")
            with tempfile.TemporaryDirectory() as scratch:
                shutil.copytree(self.client.download_artifacts(run_id, "bundle", scratch), folder, dirs_exist_ok=True)
                models = run.outputs.model_outputs if run.outputs else []
                if models:
                    files = mlflow.artifacts.download_artifacts(
                        f"models:/{models[0].model_id}", dst_path=scratch, tracking_uri=self.uri
                    )
                    shutil.copy(Path(files) / "model.onnx", folder)
                else:
                    files = self.client.download_artifacts(run_id, "model", scratch)
                    shutil.copytree(files, folder, dirs_exist_ok=True)

    def _read_json(self, run_id: str, name: str) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            return json.loads(Path(self.client.download_artifacts(run_id, name, folder)).read_text())


def _create_database(uri: str) -> None:
    """Make the SQLite file of a tracking store where there is none, whole or not at all.

    MLflow makes one in dozens of steps, and cannot go on where it was killed in between.
    """
    import psutil
    from mlflow import MlflowClient
    from sqlalchemy.engine import make_url

    name = make_url(uri).database if uri.startswith("sqlite:") else None
    if not name or name == ":memory:" or Path(name).exists():
        return
    file = Path(name)
    for left in file.parent.glob(f"{file.name}.*.partial*"):  # and SQLite's journal of it
        if not psutil.pid_exists(int(left.name.removeprefix(f"{file.name}.").partition(".")[0])):
            left.unlink(missing_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    MlflowClient(tracking_uri=f"sqlite:///{partial}").search_experiments(max_results=1)
    with contextlib.suppress(FileExistsError):  # another process was first
        os.link(partial, file)
    partial.unlink()


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
        findings=tuple(tags.get("findings", "").splitlines()),
        scheme=entry.scheme,
        command=entry.command,
        run_id=run.info.run_id if run else "",
    )


def _baseline(run: "Run") -> Baseline:
    metrics = dict(run.data.metrics)
    return Baseline(
        name=run.info.run_name, run_id=run.info.run_id, metrics=metrics, seconds=metrics.get("train_s", 0.0)
    )


def _owner() -> dict[str, str]:
    import psutil

    return {"host": socket.gethostname(), "process": f"{os.getpid()} {psutil.Process().create_time():.0f}"}


def _alive(process: str) -> bool:
    import psutil

    pid, _, created = process.partition(" ")
    with contextlib.suppress(ValueError, psutil.Error):
        return bool(abs(psutil.Process(int(pid)).create_time() - float(created)) < 2)
    return False


def _flat(prefix: str, configured: Any) -> dict[str, Any]:
    knobs = settings(configured)
    return {f"{prefix}.{name}": value for name, value in knobs.items() if name not in ("class", "name")}


def _resolved(cell: Cell) -> dict[str, Any]:
    from bitsweep.experiment import AXES

    keys = {
        name: getattr(cell, name) for name in ("dataset_key", "baseline_key", "compressed_key", "artifact_key", "key")
    }
    axes = {axis: settings(getattr(cell, axis)) for axis in AXES}
    return {**axes, "seed": cell.seed, "scheme": settings(cell.scheme), "keys": keys, "overrides": list(cell.overrides)}
