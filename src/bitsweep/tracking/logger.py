"""Writing baselines, cells and sweeps into the tracking store."""

import contextlib
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitsweep import cell_results
from bitsweep.cell import Cell
from bitsweep.config.binding import CONFIG_GROUPS
from bitsweep.measuring.scores import scores
from bitsweep.metrics import metric_of
from bitsweep.results import Curve, Evidence, Measurement, Outcome
from bitsweep.runtime import environment
from bitsweep.runtime.fingerprint import settings
from bitsweep.runtime.store import Store
from bitsweep.stages import ARTIFACT, BASELINE, COMPRESSED, DATA, INSPECTION, MEASUREMENT, key_of
from bitsweep.text import plain
from bitsweep.tracking.connection import Connection, owner
from bitsweep.tracking.entries import Entry

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

#: As many letters as MLflow keeps of a parameter.
_LONGEST_PARAM = 6000
#: Tag of a run that says which of its files could not be made, and why; empty where there are all.
MISSING = "missing_files"


class RunLogger:
    """Logs baselines, cells and sweeps."""

    def __init__(self, connection: Connection, store: Store) -> None:
        self._connection, self._client, self._store = connection, connection.client, store

    def can_complete(self, run: "Run") -> bool:
        """Whether files of a finished cell are missing that can be made from what is in the store."""
        key, tags = run.data.tags["cell_key"], run.data.tags
        return bool(tags.get(MISSING)) and any(self._store.find(stage.name, key) for stage in (MEASUREMENT, INSPECTION))

    def incomplete_baselines(self) -> set[str]:
        """Keys of baselines with missing files."""
        return {key for key, run in self._connection.baselines().items() if run.data.tags.get(MISSING)}

    @contextlib.contextmanager
    def _run(self, name: str, kind: str, tags: dict[str, str], status: str, seconds: float) -> Iterator[str]:
        now = int(time.time() * 1000)
        with self._connection.explained():
            run = self._client.create_run(
                self._connection.experiment_id,
                start_time=now - int(seconds * 1000),
                run_name=name,
                tags={"kind": kind, "commit": environment.commit(), **owner(), **tags},
            )
            run_id: str = run.info.run_id
            try:
                yield run_id
            except BaseException:
                with contextlib.suppress(Exception):  # that of a full disk, again
                    self._client.set_terminated(run_id, "KILLED")
                raise
            self._client.set_terminated(run_id, status, end_time=now)

    def log_baseline(self, cell: Cell, evidence: Evidence) -> str:
        """Log a trained baseline with its curves and checkpoint, unless it is there; returns its run id."""
        from mlflow.entities import Metric, Param

        known = self._connection.baselines().get(BASELINE.key_of(cell))
        if known and not self.is_lost(known.info.run_id):
            return self._completed(known, evidence)
        trained = cell_results.trained_of(cell, self._store)
        splits = cell_results.splits_of(cell, self._store)
        seconds = self._store.seconds("baseline", BASELINE.key_of(cell))
        tags = {"baseline_key": BASELINE.key_of(cell), "device": trained.device, "status": "finished"}
        with self._run(cell.baseline_name, "baseline", tags, "FINISHED", seconds) as run_id:
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
            metrics += _figures(figures, started)
            params = {
                "model": cell.model.name, "dataset": cell.dataset.name, "train": cell.train.name, "seed": cell.seed,
                "image_size": cell.model.image_size, **_flat("train", cell.train),
            }  # fmt: skip
            self._client.log_batch(run_id, metrics, [Param(key, str(value)) for key, value in params.items()])
            self._client.log_dict(run_id, environment.describe(*cell.packages), "environment.json")
            self._client.log_artifact(run_id, str(trained.checkpoint))
            self._log_evidence(run_id, evidence)
            self._log_input(run_id, cell, "train")
        return run_id

    def _completed(self, run: "Run", evidence: Evidence) -> str:
        """Add the files that a run is missing."""
        if run.data.tags.get(MISSING) and evidence.folder:
            with self._connection.explained():
                self._log_evidence(run.info.run_id, evidence)
        return str(run.info.run_id)

    def log_cell(
        self, cell: Cell, outcome: Outcome, evidence: Evidence | None, *, sweep_id: str, baseline_run_id: str = ""
    ) -> str:
        """Log how a cell ended, with its figures, evidence and model; returns its run id.

        Args:
            evidence: None where nothing was measured.
        """
        from mlflow.entities import Param

        known = self._connection.cells().get(key_of(cell))
        if evidence and known and MEASUREMENT.name not in outcome.seconds:
            if self.is_lost(known.info.run_id):
                with self._connection.explained():
                    self._log_files(known.info.run_id, cell, outcome, evidence)
                return str(known.info.run_id)
            if known.data.tags.get(MISSING):
                return self._completed(known, evidence)
        measured = outcome.measurement
        status = "FAILED" if outcome.status == "failed" else "FINISHED"
        tags = {
            "cell_key": key_of(cell), "sweep": sweep_id, f"sweep.{sweep_id}": "measured",
            "status": outcome.status, "reason": outcome.reason[:5000],
            "baseline_run_id": baseline_run_id, "verdict": measured.verdict if measured else "",
            "flags": ", ".join(measured.flags) if measured else "",
            "findings": "\n".join(measured.findings) if measured else "", "scheme_why": cell.scheme.why,
            "arithmetic": cell.scheme.arithmetic, "command": cell.command, "isa": environment.current_cpu().isa,
            "cpu": environment.current_cpu().model,
        }  # fmt: skip
        with self._run(cell.name, "cell", tags, status, sum(outcome.seconds.values())) as run_id:
            now = int(time.time() * 1000)
            params = {
                **cell.choices, "scheme": str(cell.scheme), "device": cell.device, "image_size": cell.model.image_size,
                **_flat("method", cell.method), "threads": cell.protocol.threads or environment.physical_cores(),
            }  # fmt: skip
            if measured and (used := measured.metrics.get("calibration_images")):
                params["method.calibration_images"] = int(used)  # fewer than were asked for, where there are no more
            seconds = {f"{stage}_s": value for stage, value in outcome.seconds.items()}
            metrics = {**seconds, **(measured.metrics if measured else {})}
            self._client.log_batch(
                run_id,
                _figures(metrics, now),
                [Param(_allowed(key), str(value)[:_LONGEST_PARAM]) for key, value in params.items()],
            )
            self._log_files(run_id, cell, outcome, evidence)
            if evidence:
                self._log_curves(run_id, cell_results.compressed_of(cell, self._store).curves)
        return run_id

    def _log_files(self, run_id: str, cell: Cell, outcome: Outcome, evidence: Evidence | None) -> None:
        """Log the settings of a cell, and all files that it has led to."""
        self._client.log_dict(run_id, _resolved(cell), "config.json")
        self._client.log_dict(run_id, environment.describe(*cell.packages), "environment.json")
        if outcome.log_tail:
            self._client.log_text(run_id, outcome.log_tail, "log.txt")
        if evidence:
            self._log_evidence(run_id, evidence)
        if outcome.status == "lowered":
            self._client.log_artifacts(run_id, str(cell_results.artifact_of(cell, self._store)), "model")
        elif outcome.measurement:
            self._log_predictions(run_id, cell, outcome.measurement)

    def adopt(self, run_id: str, *, sweep_id: str) -> None:
        """Let the run of a reused cell belong to one more sweep."""
        with self._connection.explained():
            self._client.set_tag(run_id, f"sweep.{sweep_id}", "reused")

    def is_lost(self, run_id: str) -> bool:
        """Whether the artifacts of a run were deleted."""
        with self._connection.explained():
            return not self._client.list_artifacts(run_id)

    def _log_evidence(self, run_id: str, evidence: Evidence) -> None:
        """Log the files that figures are believed by, and say which are missing."""
        if evidence.folder:
            self._client.log_artifacts(run_id, str(evidence.folder))
        self._client.set_tag(run_id, MISSING, str(evidence)[:5000])

    def _log_predictions(self, run_id: str, cell: Cell, measured: Measurement) -> None:
        """Log what the artifact computed, and the artifact."""
        for file in filter(None, (measured.logits, measured.latency_samples)):
            self._client.log_artifact(run_id, str(file))
        self._log_input(run_id, cell, "test")
        self._log_model(run_id, cell, measured.folder / "examples.npy")

    def _log_curves(self, run_id: str, curves: Sequence[Curve]) -> None:
        """Log what was recorded step by step as metrics with steps."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(_allowed(curve.name), value, now, step)
            for curve in curves
            for step, value in enumerate(curve.values)
        ]
        for start in range(0, len(metrics), 1000):  # more are refused
            self._client.log_batch(run_id, metrics[start : start + 1000])

    def _log_model(self, run_id: str, cell: Cell, examples: Path) -> None:
        """Log the artifact: as an MLflow model where MLflow has a flavour for it, else as files."""
        artifact = cell_results.artifact_of(cell, self._store)
        file = artifact / cell.backend.artifact
        if file.suffix != ".onnx":
            self._client.log_artifacts(run_id, str(artifact), "model")
            return
        import mlflow
        import mlflow.onnx
        import onnx
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        example = np.load(examples)[:1]
        classes = len(cell_results.splits_of(cell, self._store).classes)
        signature = ModelSignature(
            Schema([TensorSpec(example.dtype, (-1, *example.shape[1:]), "images")]),
            Schema([TensorSpec(np.dtype("float32"), (-1, classes), "logits")]),
        )
        with mlflow.start_run(run_id=run_id):
            mlflow.onnx.log_model(
                onnx.load(file),
                name="model",
                signature=signature,
                input_example=example,
                onnx_execution_providers=["CPUExecutionProvider"],
                pip_requirements=[f"onnxruntime=={environment.version_of('onnxruntime')}"],
                save_as_external_data=False,
            )

    def _log_input(self, run_id: str, cell: Cell, context: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        splits = cell_results.splits_of(cell, self._store)
        profile = {name: len(getattr(splits, name)) for name in ("train", "val", "test")}
        dataset = Dataset(
            name=cell.dataset.name,
            digest=splits.fingerprint[:36],
            source_type="code",
            source=json.dumps(settings(cell.dataset)),
            profile=json.dumps(profile | {"classes": len(splits.classes)}),
        )
        self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    # ----------------------------------------------------------------------- sweeps

    def start_sweep(self, sweep_id: str, command: str, entries: list[Entry], packages: Iterable[str]) -> str:
        """Open the run of a sweep and keep its plan there, so that even a killed sweep can be reported.

        Args:
            packages: distributions that its cells use.
        """
        tags = {
            "kind": "sweep", "sweep": sweep_id, "command": command, "status": "running",
            "store": str(self._place()), **owner(),
        }  # fmt: skip
        with self._connection.explained():
            run = self._client.create_run(self._connection.experiment_id, run_name=f"sweep {sweep_id}", tags=tags)
            self._write_entries(run.info.run_id, entries)
            self._write_twice(run.info.run_id, "environment.json", environment.describe(*packages))
            return str(run.info.run_id)

    def _place(self) -> Path:
        """The store's folder; relative to the database's where both may move together."""
        root, database = self._store.root, self._connection.address.database
        if database and not self._connection.address.chosen and root.is_relative_to(database.parent):
            return root.relative_to(database.parent)
        return root

    def _write_entries(self, run_id: str, entries: list[Entry]) -> None:
        self._write_twice(run_id, "plan.json", [asdict(entry) for entry in entries])

    def _write_twice(self, run_id: str, name: str, content: Any) -> None:
        """Keep something of a sweep in MLflow, and in the store for the case that it is lost there."""
        self._client.log_dict(run_id, content, name)
        self._store.write_note(run_id, name, content)

    def update_sweep(self, run_id: str, entries: list[Entry]) -> None:
        """Replace the kept plan by how its cells ended."""
        with self._connection.explained():
            self._write_entries(run_id, entries)

    def finish_sweep(self, run_id: str, status: str, files: Iterable[Path]) -> None:
        """Attach the report and end the run of a sweep: ``finished``, ``failed`` or ``killed``."""
        with self._connection.explained():
            for file in files:
                self._client.log_artifact(run_id, str(file), "report")
            self._client.set_tag(run_id, "status", status)
            self._client.set_terminated(run_id, status.upper())


def _figures(values: Mapping[str, float], timestamp: int) -> "list[Metric]":
    """Figures as MLflow takes them; all of them are declared."""
    from mlflow.entities import Metric

    assert all(metric_of(name) for name in values)
    return [Metric(name, value, timestamp, 0) for name, value in values.items()]


def _allowed(name: str) -> str:
    """A name of anybody's as MLflow takes it."""
    return re.sub(r"[^\w\-. :/]", "_", plain(name))[:250]


def _flat(prefix: str, configured: Any) -> dict[str, Any]:
    knobs = settings(configured)
    return {f"{prefix}.{name}": value for name, value in knobs.items() if name not in ("class", "name")}


def _resolved(cell: Cell) -> dict[str, Any]:
    keys = {f"{stage.name}_key": stage.key_of(cell) for stage in (DATA, BASELINE, COMPRESSED, ARTIFACT)}
    choices = {group: settings(getattr(cell, group)) for group in CONFIG_GROUPS}
    return {
        **choices,
        "seed": cell.seed,
        "scheme": settings(cell.scheme),
        "keys": keys | {"key": key_of(cell)},
        "knobs": dict(cell.knobs),
    }
