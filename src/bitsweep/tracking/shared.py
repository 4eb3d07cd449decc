"""Results of stages that machines without a common folder hand each other through MLflow."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from bitsweep.cell import Cell
from bitsweep.errors import TrackingError
from bitsweep.runtime.store import Store
from bitsweep.stages import ARTIFACT, BASELINE, COMPRESSED, Stage, needs
from bitsweep.tracking.connection import Connection, owner

if TYPE_CHECKING:
    from mlflow.entities import Run

#: The experiment with a run for each, apart from those that people compare.
EXPERIMENT = "bitsweep-store"
#: Stages whose results take long to make and mean the same on every machine whose key is the same.
SHARED = (BASELINE, COMPRESSED, ARTIFACT)
#: Tag of the kind and the key of a result.
_RESULT = "result"

log = logging.getLogger(__name__)


class SharedResults:
    """The results that are in MLflow, beside those of a store."""

    def __init__(self, connection: Connection, store: Store, *, read_only: bool = False) -> None:
        """Make their experiment where it is missing.

        Raises:
            UsageError: it is only to be read, and is not there.
            TrackingError: MLflow cannot be used.
        """
        self._connection, self._client, self._store = connection, connection.client, store
        self._damaged: set[tuple[str, str]] = set()
        with connection.explained():
            self._experiment_id = connection.experiment(EXPERIMENT, read_only=read_only)

    def known(self) -> set[tuple[str, str]]:
        """Kind and key of every result that is there."""
        with self._connection.explained():
            return {_identity(run) for run in self._finished()}

    def has(self, stage: Stage, key: str) -> bool:
        """Whether a result is there."""
        return self._find(stage, key) is not None

    def fetch(self, stage: Stage, key: str) -> Path | None:
        """The folder of a result in the store, brought from MLflow; None where that has none, or a damaged one.

        Raises:
            TrackingError: MLflow does not answer.
            StoreError: the store cannot be written.
        """
        run = self._find(stage, key) if stage in SHARED else None
        if run is None:
            return None

        def bring(folder: Path) -> None:
            self._client.download_artifacts(run.info.run_id, "", str(folder))

        try:
            with self._connection.explained():
                found = self._store.take(stage.name, key, bring)
        except TrackingError as error:
            log.warning("the %s %s cannot be fetched, and is made again: %s", stage.name, key, error)
            return None
        if found is None:
            self._damaged.add((stage.name, key))
        return found

    def offer(self, *cells: Cell) -> None:
        """Put the results that cells rest on, and that the store has, where others find them; a warning where not.

        One that was damaged there is put there anew: the latest is the one that others find.
        """
        results = {(stage.name, stage.key_of(of)): stage for cell in cells for stage, of in needs(cell)}
        try:
            for (kind, key), stage in results.items():
                folder = self._store.find(kind, key) if stage in SHARED else None
                if folder and ((kind, key) in self._damaged or not self.has(stage, key)):
                    self._upload(stage, key, folder)
                    self._damaged.discard((kind, key))
        except TrackingError as error:
            log.warning("other machines cannot fetch what was made here: %s", error)

    def _upload(self, stage: Stage, key: str, folder: Path) -> None:
        tags = {_RESULT: f"{stage.name}/{key}", **owner()}
        with self._connection.explained():
            run = self._client.create_run(self._experiment_id, run_name=f"{stage.name} {key[:12]}", tags=tags)
            try:
                self._client.log_artifacts(run.info.run_id, str(folder))
            except BaseException:
                self._client.set_terminated(run.info.run_id, "KILLED")
                raise
            self._client.set_terminated(run.info.run_id, "FINISHED")

    def _find(self, stage: Stage, key: str) -> "Run | None":
        with self._connection.explained():
            return next(iter(self._finished(f" and tags.{_RESULT} = '{stage.name}/{key}'")), None)

    def _finished(self, condition: str = "") -> "list[Run]":
        found = self._connection.search(f"attributes.status = 'FINISHED'{condition}", experiment_id=self._experiment_id)
        return [run for run in found if _RESULT in run.data.tags]


def _identity(run: "Run") -> tuple[str, str]:
    kind, _, key = run.data.tags[_RESULT].partition("/")
    return kind, key
