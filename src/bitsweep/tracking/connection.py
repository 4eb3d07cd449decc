"""Finding the tracking store, its database and the runs in it."""

import contextlib
import json
import logging
import os
import socket
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsweep.errors import TrackingError, ran_out_of_space

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "bitsweep"
_COMPARISON = "workflowType=machine_learning&compareRunsMode=CHART"


class Connection:
    """A connection to the tracking store: ``MLFLOW_TRACKING_URI``, or MLflow's default in the working directory.

    Attributes:
        uri: where the store is.
        client: MLflow's own.
        experiment_id: of the experiment that all runs are in.
    """

    def __init__(self) -> None:
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
        self.uri: str = mlflow.get_tracking_uri()
        with self.explained():
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
    def explained(self) -> Iterator[None]:
        """Turn what MLflow and its database raise within into one line.

        Raises:
            TrackingError: the tracking store cannot be used.
        """
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            if ran_out_of_space(error, Path.cwd(), tempfile.gettempdir()):
                raise TrackingError(
                    f"MLFLOW_TRACKING_URI={self.uri}: a disk is full, of {Path.cwd()} or {tempfile.gettempdir()}; free "
                    "some space, and run the same command again: what was finished is kept"
                ) from error
            reason = " ".join(str(error).split())[:300]
            raise TrackingError(
                f"MLFLOW_TRACKING_URI={self.uri}: the tracking store cannot be used ({reason}); start it, make it "
                "writable, or unset MLFLOW_TRACKING_URI to use mlflow.db in this folder"
            ) from error

    def search(self, condition: str) -> "Iterable[Run]":
        """All runs that meet a condition of MLflow's query language."""
        token = None
        while True:
            page = self.client.search_runs([self.experiment_id], condition, max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def cells(self) -> "dict[str, Run]":
        """Cell key -> its run that was finished, or lowered where its engine cannot run; others may have failed."""
        with self.explained():
            condition = "tags.kind = 'cell' and attributes.status = 'FINISHED'"
            return {run.data.tags["cell_key"]: run for run in self.search(condition)}

    def baselines(self) -> "dict[str, Run]":
        """Baseline key -> its run."""
        with self.explained():
            return {run.data.tags["baseline_key"]: run for run in self.search("tags.kind = 'baseline'")}

    def sweeps(self) -> "dict[str, Run]":
        """Sweep id -> its run."""
        with self.explained():
            return {run.data.tags["sweep"]: run for run in self.search("tags.kind = 'sweep'")}

    def read_json(self, run_id: str, name: str) -> Any:
        """The content of a JSON artifact of a run."""
        with self.explained(), tempfile.TemporaryDirectory() as folder:
            return json.loads(Path(self.client.download_artifacts(run_id, name, folder)).read_text())

    def _end_abandoned(self) -> None:
        for run in self.search("attributes.status = 'RUNNING'"):
            tags = run.data.tags
            if tags.get("host") == socket.gethostname() and not _alive(tags.get("process", "")):
                self.client.set_terminated(run.info.run_id, "KILLED")


def owner() -> dict[str, str]:
    """Tags that show whether the process that writes a run is still alive."""
    import psutil

    return {"host": socket.gethostname(), "process": f"{os.getpid()} {psutil.Process().create_time():.0f}"}


def _alive(process: str) -> bool:
    import psutil

    pid, _, created = process.partition(" ")
    with contextlib.suppress(ValueError, psutil.Error):
        return bool(abs(psutil.Process(int(pid)).create_time() - float(created)) < 2)
    return False


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
    for left in file.parent.glob(f"{file.name}.*.partial*"):  # and SQLite's logger of it
        if not psutil.pid_exists(int(left.name.removeprefix(f"{file.name}.").partition(".")[0])):
            left.unlink(missing_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    MlflowClient(tracking_uri=f"sqlite:///{partial}").search_experiments(max_results=1)
    with contextlib.suppress(FileExistsError):  # another process was first
        os.link(partial, file)
    partial.unlink()
