"""Writing sweeps into the tracking store: their plan, how their cells ended, and their report."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitsweep.config.requirement import Requirements
from bitsweep.report import Race
from bitsweep.runtime import environment
from bitsweep.runtime.store import Store
from bitsweep.tracking.connection import Connection, owner
from bitsweep.tracking.entries import RACES, TABLE, Entry


class SweepLogger:
    """Logs sweeps."""

    def __init__(self, connection: Connection, store: Store) -> None:
        self._connection, self._client, self._store = connection, connection.client, store

    def start(
        self, sweep_id: str, command: str, entries: list[Entry], packages: Iterable[str], *, require: Requirements
    ) -> str:
        """Open the run of a sweep and keep its plan there, so that even a killed sweep can be reported.

        Args:
            packages: distributions that its cells use.
            require: what its cells must keep.
        """
        tags = {
            "kind": "sweep", "sweep": sweep_id, "command": command, "status": "running",
            "store": str(self._place()), "require": json.dumps(require.set_values), **owner(),
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

    def update(self, run_id: str, entries: list[Entry]) -> None:
        """Replace the kept plan by how its cells ended."""
        with self._connection.explained():
            self._write_entries(run_id, entries)

    def write_races(self, run_id: str, races: Sequence[Race], reason: str) -> None:
        """Keep the final races of a sweep.

        Args:
            reason: why one could not be held.
        """
        with self._connection.explained():
            self._write_twice(run_id, RACES, {"races": [asdict(race) for race in races], "reason": reason})

    def finish(
        self, run_id: str, status: str, files: Iterable[Path], cells: Sequence[Mapping[str, str | float]]
    ) -> None:
        """Attach the report and end the run of a sweep: ``finished``, ``failed`` or ``killed``.

        Args:
            cells: a record each, which MLflow shows as a table.
        """
        with self._connection.explained():
            if cells:
                table = {name: [None if each[name] == "" else each[name] for each in cells] for name in cells[0]}
                self._client.log_table(run_id, table, TABLE)
            for file in files:
                self._client.log_artifact(run_id, str(file), "report")
            self._client.set_tag(run_id, "status", status)
            self._client.set_terminated(run_id, status.upper())
