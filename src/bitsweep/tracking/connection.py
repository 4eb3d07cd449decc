"""Finding the tracking store, its database and the runs in it."""

import contextlib
import json
import os
import socket
import sqlite3
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsweep.errors import TrackingError, UsageError, ran_out_of_space
from bitsweep.runtime import machine
from bitsweep.tracking.address import VARIABLE, Address, find_address, prepare_database, quiet_mlflow
from bitsweep.tracking.advice import explain

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "bitsweep"
#: Where the MLflow UI listens if nothing else is said.
UI_PORT = 5000
#: What follows the address of the experiment where the cells, without baselines and sweeps, are compared as charts.
COMPARISON = "/runs?workflowType=machine_learning&compareRunsMode=CHART&searchFilter=tags.kind%3D%22cell%22"
#: From so many keys on all runs are read, instead of those of each key: MLflow takes 10 ms to find one, and 2 for each.
_ONE_BY_ONE = 100
#: Requests at once, where there are many: a server takes its time.
AT_ONCE = 8
#: Runs that one request asks for: a busy server took more than its 15 seconds for 1,000.
_IN_A_REQUEST = 200
#: Addresses where this process has ended runs that a killed process left.
_tidied: set[str] = set()


class Connection:
    """A connection to the tracking store: ``MLFLOW_TRACKING_URI``, or MLflow's default in the working directory.

    Attributes:
        address: where the store is.
        client: MLflow's own.
        experiment_id: of the experiment that all runs are in.
    """

    def __init__(self, *, read_only: bool = False, of_job: bool = False) -> None:
        """Connect, create database and experiment where they are missing, and end runs that a killed process left.

        Args:
            read_only: create and end nothing.
            of_job: whether this is for one of many jobs: then the first of a process alone ends runs.

        Raises:
            UsageError: it is only to be read, and is not there.
            TrackingError: the tracking store does not answer or cannot be written.
        """
        machine.check()  # MLflow needs to know the user
        self.address = find_address()
        with self.explained():
            prepare_database(self.address, read_only=read_only)
            self.client: MlflowClient = client_of(self.address)
            self.experiment_id = self.experiment(EXPERIMENT, read_only=read_only)
            if not (read_only or (of_job and self.address.uri in _tidied)):
                self._end_abandoned()
                _tidied.add(self.address.uri)

    @property
    def uri(self) -> str:
        """The address as it may be shown, without a password."""
        return self.address.shown

    def experiment(self, name: str, *, read_only: bool = False) -> str:
        """The id of an experiment, which is created where it is missing.

        Raises:
            UsageError: it is only to be read, and is not there.
            TrackingError: it was deleted.
        """
        found = self.client.get_experiment_by_name(name)
        if found is None and read_only:
            raise UsageError(f"{self.address.named}: holds no experiment {name}: nothing was measured there yet")
        if found is None:
            where = self.address.artifacts
            return str(self.client.create_experiment(name, where and f"{where}/{name}"))
        if found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"{self.address.named}: the experiment {name} was deleted; restore it: {VARIABLE}={self.uri} "
                f"mlflow experiments restore --experiment-id {found.experiment_id}"
            )
        return str(found.experiment_id)

    @property
    def ui_url(self) -> str:
        """Of the experiment in the MLflow UI: that of a server, or the one that ``bitsweep ui`` starts by default."""
        return self.ui_url_at(self.uri.rstrip("/") if self.address.served else f"http://127.0.0.1:{UI_PORT}")

    def ui_url_at(self, server: str) -> str:
        """The same at another address."""
        return f"{server}/#/experiments/{self.experiment_id}"

    def explained(self) -> contextlib.AbstractContextManager[None]:
        """Turn what MLflow and its database raise within into one line, see `explained`."""
        return explained(self.address)

    def search(self, condition: str, *, experiment_id: str = "", deleted: bool = False) -> "Iterable[Run]":
        """All runs that meet a condition of MLflow's query language, of an experiment or of that of the cells."""
        from mlflow.entities import ViewType

        kind = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
        token = None
        while True:
            page = self.client.search_runs(
                [experiment_id or self.experiment_id], condition, kind, max_results=_IN_A_REQUEST, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def cells(self, keys: Collection[str] | None = None) -> "dict[str, Run]":
        """Cell key -> its latest run that was finished, or lowered where its engine cannot run.

        Args:
            keys: those that are asked for; None for all. Reading a few takes no longer where there are many.
        """
        return self._latest("cell", "cell_key", keys)

    def baselines(self, keys: Collection[str] | None = None) -> "dict[str, Run]":
        """Baseline key -> its latest run that was finished."""
        return self._latest("baseline", "baseline_key", keys)

    def _latest(self, kind: str, tag: str, keys: Collection[str] | None) -> "dict[str, Run]":
        condition = f"tags.kind = '{kind}' and attributes.status = 'FINISHED'"
        conditions = [condition]
        if keys is not None and len(keys) < _ONE_BY_ONE:
            conditions = [f"{condition} and tags.{tag} = '{key}'" for key in sorted(keys)]
        found: dict[str, Run] = {}
        with self.explained():
            for each in conditions:
                for run in self.search(each):  # the latest come first
                    if tag in run.data.tags:
                        found.setdefault(run.data.tags[tag], run)
        return found if keys is None else {key: found[key] for key in keys if key in found}

    def run(self, run_id: str) -> "Run | None":
        """A run by its id, also one that was deleted and not yet removed; None where there is none."""
        from mlflow.exceptions import MlflowException

        with self.explained():
            try:
                return self.client.get_run(run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        return None

    def runs(self, run_ids: Iterable[str]) -> "dict[str, Run]":
        """Run id -> the run, of those that are there; many with one request."""
        asked, found = sorted({*run_ids}), dict[str, "Run"]()
        with self.explained():
            for start in range(0, len(asked), _IN_A_REQUEST):
                listed = ", ".join(f"'{each}'" for each in asked[start : start + _IN_A_REQUEST])
                found |= {run.info.run_id: run for run in self.search(f"attributes.run_id IN ({listed})")}
        return found

    def sweeps(self, *, deleted: bool = False) -> "dict[str, Run]":
        """Sweep id -> its run, of those that are there or of those that were deleted and can be restored."""
        with self.explained():
            runs = self.search("tags.kind = 'sweep'", deleted=deleted)
            return {run.data.tags["sweep"]: run for run in runs if "sweep" in run.data.tags}

    def read_json(self, run_id: str, name: str) -> Any:
        """The content of a JSON artifact of a run."""
        with self.explained(), tempfile.TemporaryDirectory() as folder:
            return json.loads(Path(self.client.download_artifacts(run_id, name, folder)).read_text())

    def _end_abandoned(self) -> None:
        for run in self.search("attributes.status = 'RUNNING'"):
            tags = run.data.tags
            if tags.get("host") == socket.gethostname() and not _alive(tags.get("process", "")):
                self.client.set_terminated(run.info.run_id, "KILLED")


def client_of(address: Address) -> "MlflowClient":
    """MLflow, made to use a store and to be quiet. A server that is not there is noticed within seconds."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    quiet_mlflow(served=address.served)
    import mlflow

    if not address.served:
        _require_readable(address)
    mlflow.set_tracking_uri(address.uri)
    if not address.chosen:  # MLflow sets the variable, too, as if the user had
        os.environ.pop(VARIABLE, None)
    return mlflow.MlflowClient()


def _require_readable(address: Address) -> None:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    with contextlib.suppress(ArgumentError):  # no address of a database
        try:
            make_url(address.uri)
        except ValueError as error:
            raise TrackingError(explain(error, address)) from error


@contextlib.contextmanager
def explained(address: Address) -> Iterator[None]:
    """Turn what MLflow and its database raise within into one line.

    Raises:
        TrackingError: the tracking store cannot be used.
    """
    from mlflow.exceptions import MlflowException

    raised: tuple[type[Exception], ...] = (MlflowException, sqlite3.Error, OSError, ImportError, UnicodeError)
    if not address.served:  # a server's clients need no SQLAlchemy, which takes half a second to import
        from sqlalchemy.exc import SQLAlchemyError

        raised = (*raised, SQLAlchemyError)
    try:
        yield
    except raised as error:
        if ran_out_of_space(error, Path.cwd(), tempfile.gettempdir()):
            raise TrackingError(
                f"{address.named}: a disk is full, of {Path.cwd()} or {tempfile.gettempdir()}; free "
                "some space, and run the same command again: what was finished is kept"
            ) from error
        raise TrackingError(explain(error, address)) from None


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
