"""Writing baselines and cells into the tracking store."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bitsweep import cell_results
from bitsweep.cell import Cell
from bitsweep.deploy.facts import FOLDER
from bitsweep.errors import BitsweepError
from bitsweep.measuring.scores import scores
from bitsweep.pipeline import StageRunner
from bitsweep.results import Evidence, Measurement, Outcome
from bitsweep.runtime import environment
from bitsweep.runtime.store import Store
from bitsweep.stages import BASELINE, INSPECTION, MEASUREMENT, key_of, last
from bitsweep.tracking.bundles import digest_of_files
from bitsweep.tracking.connection import AT_ONCE, Connection, owner
from bitsweep.tracking.described import (
    FACTS_HASH,
    LABELS,
    LONGEST_TAG,
    MEASURED,
    MISSING,
    MODEL_HASH,
    EndedCell,
    data_of,
    params_of_baseline,
    settings_of,
)
from bitsweep.tracking.figures import compression_curves, figures, training_curves
from bitsweep.tracking.model import MODEL, log_onnx_model

if TYPE_CHECKING:
    from mlflow.entities import Run

#: Metrics that MLflow takes at once, beside the parameters: 1,000 in all.
_METRICS = 900


class RunLogger:
    """Logs baselines and cells."""

    def __init__(self, connection: Connection, store: Store) -> None:
        self._connection, self._client, self._store = connection, connection.client, store

    def can_complete(self, run: "Run") -> bool:
        """Whether files of a finished cell are missing that can be made from what is in the store."""
        key, tags = run.data.tags["cell_key"], run.data.tags
        return bool(tags.get(MISSING)) and any(self._store.find(stage.name, key) for stage in (MEASUREMENT, INSPECTION))

    def incomplete_baselines(self, keys: Collection[str]) -> set[str]:
        """Those of the keys whose baselines have missing files."""
        return {key for key, run in self._connection.baselines(keys).items() if run.data.tags.get(MISSING)}

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

    def log_baseline(self, cell: Cell, gather: Callable[[], Evidence]) -> str:
        """Log a trained baseline with its curves and checkpoint, unless it is there; returns its run id.

        Args:
            gather: makes the files that its figures are believed by, where they are needed.
        """
        key = BASELINE.key_of(cell)
        known = self._connection.baselines([key]).get(key)
        if known and not self.is_lost(known):
            if known.data.tags.get(MISSING) and (evidence := gather()).folder:
                with self._connection.explained():
                    self._log_evidence(known.info.run_id, evidence, was=known.data.tags[MISSING])
            return str(known.info.run_id)
        evidence = gather()
        trained = cell_results.trained_of(cell, self._store)
        splits = cell_results.splits_of(cell, self._store)
        seconds = self._store.seconds("baseline", key)
        tags = {"baseline_key": key, "device": trained.device, "status": "finished"}
        tags |= {"notes": "\n".join(trained.notes)} if trained.notes else {}
        with self._run(cell.baseline_name, "baseline", tags, "FINISHED", seconds) as run_id:
            started = int(time.time() * 1000) - int(seconds * 1000)
            top1 = float((trained.test_logits_NK.argmax(1) == splits.test.labels).mean())
            found = {"top1": top1, "best_epoch": trained.best_epoch, "train_s": seconds}
            if np.isfinite(trained.test_logits_NK).all():
                found |= scores(trained.test_logits_NK, splits.test.labels)
            metrics = [*training_curves(trained.history, started), *figures(found, started)]
            self._client.log_batch(run_id, metrics, params_of_baseline(cell))
            self._client.log_dict(run_id, environment.describe(*cell.packages), "environment.json")
            self._client.log_artifact(run_id, str(trained.checkpoint))
            self._log_evidence(run_id, evidence)
            self._log_input(run_id, cell, "train")
        return run_id

    def log_cell(
        self,
        cell: Cell,
        outcome: Outcome,
        evidence: Evidence | None,
        *,
        runner: StageRunner,
        sweep_id: str,
        baseline_run_id: str = "",
    ) -> tuple[str, Evidence | None]:
        """Log how a cell ended, with its figures, evidence and model; returns its run id, and what that got.

        Args:
            evidence: None where nothing was measured.
            runner: starts the process that logs the model.
        """
        ended = EndedCell(
            cell=cell,
            outcome=outcome,
            sweep_id=sweep_id,
            measurement_id=str(self._store.finished_ns(last(cell).name, key_of(cell))),
            baseline_run_id=baseline_run_id,
        )
        if not evidence:
            return self._log_new(ended, None, runner)
        # Another sweep may be about to log the same measurement.
        with self._store.holding("run", key_of(cell)):
            return self._log_measured(ended, evidence, runner)

    def _log_measured(self, ended: EndedCell, evidence: Evidence, runner: StageRunner) -> tuple[str, Evidence | None]:
        """Log a cell with figures, unless the run of this measurement is there: that one gets what it lacks."""
        key = key_of(ended.cell)
        known = self._connection.cells([key]).get(key)
        if known is None:
            return self._log_new(ended, evidence, runner)
        run_id, tags = str(known.info.run_id), known.data.tags
        is_this = tags.get(MEASURED) == ended.measurement_id
        if is_this or MEASUREMENT.name not in ended.outcome.seconds:
            if self.is_lost(known):
                with self._connection.explained():
                    for tag, value in self._hashes(ended, evidence).items():
                        self._client.set_tag(run_id, tag, value)
                    return run_id, self._log_files(run_id, ended, evidence, runner, was=tags.get(MISSING, ""))
            if missing := tags.get(MISSING):
                with self._connection.explained():
                    model_too = missing.startswith(f"{MODEL} is missing")
                    for tag, value in self._hashes(ended, evidence, model_too=model_too).items():
                        self._client.set_tag(run_id, tag, value)
                    if model_too:
                        evidence = self._log_model(run_id, ended, evidence, runner)
                    self._log_evidence(run_id, evidence, was=missing)
                return run_id, evidence
            if is_this:
                self.adopt([run_id], sweep_id=ended.sweep_id)
                return run_id, evidence
        return self._log_new(ended, evidence, runner)

    def _log_new(self, ended: EndedCell, evidence: Evidence | None, runner: StageRunner) -> tuple[str, Evidence | None]:
        """Log a cell in a run of its own."""
        took, measured = ended.outcome.seconds, ended.outcome.measurement
        tags = ended.tags | (self._hashes(ended, evidence) if evidence else {})
        with self._run(ended.cell.name, "cell", tags, ended.status, sum(took.values())) as run_id:
            found = {f"{stage}_s": value for stage, value in took.items()} | (measured.metrics if measured else {})
            metrics = figures(found, now := int(time.time() * 1000))
            if evidence:  # what went step by step, or layer by layer
                metrics += compression_curves(cell_results.compressed_of(ended.cell, self._store), now)
            params = ended.params
            for start in range(0, max(len(metrics), 1), _METRICS):
                self._client.log_batch(run_id, metrics[start : start + _METRICS], params if start == 0 else ())
            evidence = self._log_files(run_id, ended, evidence, runner)
        return run_id, evidence

    def _log_files(
        self, run_id: str, ended: EndedCell, evidence: Evidence | None, runner: StageRunner, *, was: str = ""
    ) -> Evidence | None:
        """Log the settings of a cell, and all files that it has led to; returns what the run got of these."""
        cell, outcome = ended.cell, ended.outcome
        self._client.log_dict(run_id, settings_of(cell), "config.json")
        self._client.log_dict(run_id, environment.describe(*cell.packages), "environment.json")
        if outcome.log_tail:
            self._client.log_text(run_id, outcome.log_tail, "log.txt")
        if evidence:
            if outcome.measurement and outcome.status != "lowered":
                self._log_predictions(run_id, cell, outcome.measurement)
            evidence = self._log_model(run_id, ended, evidence, runner)
            self._log_evidence(run_id, evidence, was=was)
        return evidence

    def _hashes(self, ended: EndedCell, evidence: Evidence, *, model_too: bool = True) -> dict[str, str]:
        """Tags by which it is seen later whether what is deployed is what was logged."""
        facts = evidence.folder / FOLDER if evidence.folder else None
        hashes = {FACTS_HASH: digest_of_files(facts)} if facts and facts.is_dir() else {}
        if model_too:
            hashes[MODEL_HASH] = digest_of_files(self._deployable(ended))
        return hashes

    def _deployable(self, ended: EndedCell) -> Path:
        """The artifact: one file where MLflow has a flavour for it, else a folder."""
        artifact = cell_results.artifact_of(ended.cell, self._store)
        file = artifact / ended.cell.backend.artifact
        alone = file.suffix == ".onnx" and ended.outcome.status != "lowered" and ended.outcome.measurement
        return file if alone else artifact

    def adopt(self, run_ids: Iterable[str], *, sweep_id: str) -> None:
        """Let the runs of cells belong to one more sweep, those that do not."""
        with self._connection.explained():
            for run_id, run in self._connection.runs(run_ids).items():
                if f"sweep.{sweep_id}" not in run.data.tags:
                    self._client.set_tag(run_id, f"sweep.{sweep_id}", "reused")

    def lost(self, run_ids: Iterable[str]) -> set[str]:
        """Those of the runs whose artifacts were deleted."""
        runs = self._connection.runs(run_ids)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = zip(runs, pool.map(self.is_lost, runs.values()), strict=True)
        return {run_id for run_id, is_lost in found if is_lost}

    def is_lost(self, run: "Run") -> bool:
        """Whether the artifacts of a run were deleted."""
        from mlflow.artifacts import list_artifacts

        with self._connection.explained():
            return not list_artifacts(artifact_uri=run.info.artifact_uri)

    def _log_evidence(self, run_id: str, evidence: Evidence, *, was: str = "") -> None:
        """Log the files that figures are believed by, and say which are missing.

        Args:
            was: what the run says of that.
        """
        if evidence.folder:
            self._client.log_artifacts(run_id, str(evidence.folder))
        if (missing := str(evidence)[:LONGEST_TAG]) != was:
            self._client.set_tag(run_id, MISSING, missing)

    def _log_predictions(self, run_id: str, cell: Cell, measured: Measurement) -> None:
        """Log what the artifact computed, and for which data."""
        for file in filter(None, (measured.logits, measured.latency_samples)):
            self._client.log_artifact(run_id, str(file))
        with tempfile.TemporaryDirectory() as scratch:
            np.save(labels := Path(scratch) / LABELS, cell_results.splits_of(cell, self._store).test.labels)
            self._client.log_artifact(run_id, str(labels))
        self._log_input(run_id, cell, "test")

    def _log_model(self, run_id: str, ended: EndedCell, evidence: Evidence, runner: StageRunner) -> Evidence:
        """Log the artifact: as an MLflow model where MLflow has a flavour for it, else as files.

        Returns:
            The evidence; where MLflow cannot make a model of the artifact, that is missing there.
        """
        cell, outcome = ended.cell, ended.outcome
        file = self._deployable(ended)
        if file.is_dir() or not outcome.measurement:
            self._client.log_artifacts(run_id, str(file), MODEL)
            return evidence
        given = {
            "address": self._connection.address,
            "experiment_id": self._connection.experiment_id,
            "run_id": run_id,
            "file": file,
            "examples": outcome.measurement.folder / "examples.npy",
            "classes": len(cell_results.splits_of(cell, self._store).classes),
        }
        try:
            runner.call(log_onnx_model, given)
        except BitsweepError as error:
            return replace(evidence, missing={MODEL: str(error), **evidence.missing})
        return evidence

    def _log_input(self, run_id: str, cell: Cell, context: str) -> None:
        self._client.log_inputs(run_id, [data_of(cell, cell_results.splits_of(cell, self._store), context)])
