"""Reports as they are read back."""

from pathlib import Path

import pytest

from bitsweep.report import Baseline
from bitsweep.tracking.connection import Connection
from bitsweep.tracking.reading import _illustrated


def test_pictures_that_are_at_hand_are_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    connection = Connection()
    (source := tmp_path / "store" / "pictures" / "speed").mkdir(parents=True)
    (source / "latency.png").write_bytes(b"here")
    logged = connection.client.create_run(connection.experiment_id).info.run_id
    connection.client.log_text(logged, "there", "pictures/speed/latency.png")
    nobodys = "0" * 32  # a run that MLflow does not have
    found = [Baseline(name=run_id, run_id=run_id, metrics={}, seconds=0) for run_id in (logged, nobodys, "")]
    fetched, copied, none = _illustrated(connection, found, tmp_path / "report", {nobodys: source.parent})
    assert [file.read_text() for file in (*fetched.pictures, *copied.pictures)] == ["there", "here"]
    assert copied.pictures == (tmp_path / "report" / "runs" / nobodys / "pictures" / "speed" / "latency.png",)
    assert none.pictures == ()
