"""What becomes of reports when runs, artifacts or the whole store are lost, and of cells that a second sweep reuses."""

import csv
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from bitsweep import cli
from bitsweep.tracking.connection import Connection

pytestmark = pytest.mark.slow
WORDS = ["model=mlp", "model.image_size=32", "train=smoke", "train.max_steps=20", "protocol=smoke", "precision=fp32"]


def sweep(name: str) -> list[dict[str, str]]:
    """Run a sweep of one cell; gives the rows of its report."""
    command = [sys.executable, "run.py", *WORDS, f"hydra.run.dir=multirun/{name}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return rows(Path("multirun") / name)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "cells.csv").open() as file:
        return list(csv.DictReader(file))


def figures(row: dict[str, str]) -> dict[str, str]:
    return {name: row[name] for name in ("top1", "latency_p50_ms", "size_mb")}


def artifacts(run_id: str) -> set[str]:
    return {file.name for file in Path("mlruns").rglob(f"{run_id}/artifacts/**/*") if file.is_file()}


def test_nothing_that_was_measured_is_lost(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (first,) = sweep("first")
    logged = artifacts(first["run_id"])
    assert {"bundle.json", "config.json", "logits.npy"} <= logged

    # Artifacts that were deleted are logged again from the store; reused cells belong to the new sweep, too.
    shutil.rmtree("mlruns")
    (second,) = sweep("second")
    assert (second["status"], second["run_id"]) == ("reused", first["run_id"])
    assert figures(second) == figures(first)
    assert artifacts(first["run_id"]) >= logged - {"environment.json"}
    connection = Connection(read_only=True)
    for name, how in (("first", "measured"), ("second", "reused")):
        (run,) = connection.search(f"tags.`sweep.{name}` = '{how}'")
        assert run.info.run_id == first["run_id"]

    # The whole project moves.
    moved = workplace.with_name(f"{workplace.name} moved")
    shutil.move(workplace, moved)
    os.chdir(moved)
    cli.main(["export", first["run_id"], "bundle"])
    assert Path("bundle/model.onnx").exists()

    # A deleted run is in the trash, and then gone for good: it was measured all the same.
    Connection().client.delete_run(first["run_id"])
    cli.main(["report", "first"])
    assert figures(rows(Path("multirun/first"))[0]) == figures(first)
    with closing(sqlite3.connect("mlflow.db")) as database, database:
        for table in ("params", "metrics", "latest_metrics", "tags", "runs"):
            database.execute(f"delete from {table} where run_uuid = ?", (first["run_id"],))
    cli.main(["report", "first", "--folder", "again"])
    (row,) = rows(Path("again"))
    assert (row["status"], row["run_id"]) == ("finished", "")
    assert figures(row) == figures(first)

    # With the store gone, too, a report that was complete is kept.
    shutil.rmtree("multirun/store")
    before = Path("multirun/second/report.html").read_bytes()
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", "second"])
    assert ended.value.code == 2
    assert "multirun/second: the report there is complete, while 1 of its cells are gone" in capsys.readouterr().err
    assert Path("multirun/second/report.html").read_bytes() == before
    cli.main(["report", "second", "--folder", "other"])
    assert "gone from MLflow, and what it measured from the store" in Path("other/report.md").read_text()
