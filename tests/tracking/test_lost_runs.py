"""What becomes of reports when runs, artifacts or the whole store are lost, and of cells that a second sweep reuses."""

import csv
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bitsweep import cli
from bitsweep.tracking.connection import Connection
from tests.conftest import QUICK, run

pytestmark = pytest.mark.slow


def fp32_of(folder: Path) -> dict[str, str]:
    """The row of the float cell in a report."""
    with (folder / "cells.csv").open() as file:
        (row,) = (row for row in csv.DictReader(file) if (row["method"], row["precision"]) == ("none", "fp32"))
    return row


def figures(row: dict[str, str]) -> dict[str, str]:
    return {name: row[name] for name in ("top1", "latency_p50_ms", "size_mb")}


def artifacts(run_id: str) -> set[str]:
    return {file.name for file in Path("mlruns").rglob(f"{run_id}/artifacts/**/*") if file.is_file()}


def test_a_store_that_was_damaged_is_mended_where_the_database_is_gone(measured: Path) -> None:
    (folder,) = Path("multirun").glob("*/cells.csv")
    first = fp32_of(folder.parent)
    for file in ("dataset/*/train_labels.npy", "artifact/*/model.onnx"):
        for damaged in Path("multirun/store").glob(file):
            damaged.write_bytes(damaged.read_bytes() + b"x")
    Path("mlflow.db").unlink()
    shutil.rmtree("mlruns")
    run(*QUICK, "precision=fp32", "hydra.run.dir=multirun/second")
    second = fp32_of(Path("multirun/second"))
    assert second["status"] == "finished" and figures(second) == figures(first)
    assert {"bundle.json", "config.json", "logits.npy"} <= artifacts(second["run_id"])


def test_nothing_that_was_measured_is_lost(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = Path("multirun").glob("*/cells.csv")
    name = folder.parent.name
    first = fp32_of(folder.parent)
    logged = artifacts(first["run_id"])
    assert {"bundle.json", "config.json", "logits.npy"} <= logged

    # Artifacts that were deleted are logged again from the store; reused cells belong to the new sweep, too.
    shutil.rmtree("mlruns")
    run(*QUICK, "precision=fp32", "hydra.run.dir=multirun/second")
    second = fp32_of(Path("multirun/second"))
    assert (second["status"], second["run_id"]) == ("reused", first["run_id"])
    assert figures(second) == figures(first)
    assert artifacts(first["run_id"]) >= logged - {"environment.json"}
    connection = Connection(read_only=True)
    for sweep, how in ((name, "measured"), ("second", "reused")):
        runs = {run.info.run_id for run in connection.search(f"tags.`sweep.{sweep}` = '{how}'")}
        assert first["run_id"] in runs

    # The whole project moves.
    moved = measured.with_name(f"{measured.name} moved")
    shutil.move(measured, moved)
    os.chdir(moved)
    cli.main(["export", first["run_id"], "bundle"])
    assert Path("bundle/model.onnx").exists()

    # A run without its tags tells nothing: what it measured is read from the store. A deleted sweep can be restored.
    client = Connection().client
    tags = client.get_run(first["run_id"]).data.tags
    for tag in ("status", "kind", "flags"):
        client.delete_tag(first["run_id"], tag)
    cli.main(["report", name])
    assert figures(fp32_of(folder.parent)) == figures(first)
    for tag in ("status", "kind", "flags"):
        client.set_tag(first["run_id"], tag, tags[tag])
    own = Connection().sweeps()[name].info.run_id
    client.delete_run(own)
    with pytest.raises(SystemExit):
        cli.main(["report", name])
    assert f"{name} was deleted, restore it: MLFLOW_TRACKING_URI=" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["report", "another"])
    assert "was deleted" not in capsys.readouterr().err
    client.restore_run(own)

    # A deleted run is in the trash, and then gone for good: it was measured all the same.
    Connection().client.delete_run(first["run_id"])
    cli.main(["report", name])
    assert figures(fp32_of(folder.parent)) == figures(first)
    with closing(sqlite3.connect("mlflow.db")) as database, database:
        for table in ("params", "metrics", "latest_metrics", "tags", "runs"):
            database.execute(f"delete from {table} where run_uuid = ?", (first["run_id"],))
    cli.main(["report", name, "--folder", "again"])
    again = fp32_of(Path("again"))
    assert (again["status"], again["run_id"]) == ("finished", "")
    assert figures(again) == figures(first)

    # With the store gone, too, a report that was complete is kept.
    shutil.rmtree("multirun/store")
    before = Path("multirun/second/report.html").read_bytes()
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", "second"])
    assert ended.value.code == 2
    assert (
        "multirun/second: the report there is complete, while MLflow and the store lack 1 cell; it is kept"
        in capsys.readouterr().err
    )
    assert Path("multirun/second/report.html").read_bytes() == before
    cli.main(["report", "second", "--folder", "other"])
    assert "gone from MLflow, and what it measured from the store" in Path("other/report.md").read_text()


def test_what_changed_in_mlflow_is_not_exported(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = Path("multirun").glob("*/cells.csv")
    run_id = fp32_of(folder.parent)["run_id"]
    (facts,) = Path("mlruns").rglob(f"{run_id}/artifacts/bundle/bundle.json")
    logged = Connection().client.get_run(run_id).outputs.model_outputs
    (model,) = (file for each in logged for file in Path("mlruns").rglob(f"{each.model_id}/artifacts/model.onnx"))
    for file, what in ((facts, "bundle"), (model, "model")):
        content = file.read_bytes()
        file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        with pytest.raises(SystemExit):
            cli.main(["export", run_id, "exported"])
        assert (
            f"its {what} in MLflow changed since it was logged; delete the run, and repeat" in capsys.readouterr().err
        )
        assert not Path("exported").exists()
        file.write_bytes(content)
    facts.write_bytes(facts.read_bytes()[:-9] + b"x")
    Connection().client.delete_run(run_id)
    run(*QUICK, "precision=fp32", "hydra.run.dir=multirun/second")
    cli.main(["export", fp32_of(Path("multirun/second"))["run_id"], "exported"])
    cli.main(["verify", "--here", "exported"])
