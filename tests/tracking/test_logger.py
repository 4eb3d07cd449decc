"""What becomes of many runs at once."""

import shutil
from pathlib import Path

import pytest

from bitsweep.runtime.store import Store
from bitsweep.tracking import connection as module
from bitsweep.tracking.connection import Connection
from bitsweep.tracking.logger import RunLogger


def test_many_runs_are_adopted_and_looked_for(tracked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_IN_A_REQUEST", 2)
    connection = Connection()
    logger, client = RunLogger(connection, Store(tracked / "store")), connection.client
    run_ids = [client.create_run(connection.experiment_id).info.run_id for _ in range(5)]
    for run_id in run_ids:
        client.log_text(run_id, "kept", "kept.txt")
    client.set_tag(run_ids[0], "sweep.second", "run")
    logger.adopt(run_ids[:4], sweep_id="second")
    found = connection.runs(run_ids)
    assert [found[run_id].data.tags.get("sweep.second") for run_id in run_ids] == ["run", *3 * ["reused"], None]
    (folder,) = Path("mlruns").rglob(run_ids[2])
    shutil.rmtree(folder)
    assert logger.lost(run_ids) == {run_ids[2]}
    assert logger.lost([]) == set()
