"""The database of the tracking store, killed while it is made, made twice at once, and without room."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CONNECT = """
from bitsweep.errors import BitsweepError
from bitsweep.tracking.connection import Connection
print(Connection().experiment_id)
"""
WRITE = """
try:
    with Connection().explained(), open("/dev/full", "w") as full:
        full.write("x")
except BitsweepError as error:
    print(error)
"""


def connect(folder: Path, script: str = CONNECT) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return subprocess.Popen(
        [sys.executable, "-c", script], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE
    )


def tables(file: Path) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        return len(database.execute("select name from sqlite_master where type = 'table'").fetchall())


def wait_for_tables(folder: Path, victim: subprocess.Popen[str]) -> None:
    """Until a database is there and has some tables."""
    while True:
        assert victim.poll() is None
        for file in folder.glob("mlflow.db*"):
            try:
                if tables(file) > 2:
                    return
            except sqlite3.DatabaseError:  # locked just now, or a logger
                pass
        time.sleep(0.002)


def test_a_database_is_whole_or_not_there(tmp_path: Path) -> None:
    with connect(tmp_path) as victim:
        wait_for_tables(tmp_path, victim)
        victim.kill()
    assert not (tmp_path / "mlflow.db").exists()
    with connect(tmp_path) as again:
        assert again.communicate()[0].strip() == "1"
    assert [file.name for file in tmp_path.glob("mlflow.db*")] == ["mlflow.db"]


def test_two_that_start_at_once_share_one(tmp_path: Path) -> None:
    with connect(tmp_path) as one, connect(tmp_path) as other:
        assert {process.communicate()[0].strip() for process in (one, other)} == {"1"}
    assert [file.name for file in tmp_path.glob("mlflow.db*")] == ["mlflow.db"]


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with connect(tmp_path, CONNECT + WRITE) as full:
        *_, line = full.communicate()[0].splitlines()
    assert line.startswith(f"MLFLOW_TRACKING_URI=sqlite:///{tmp_path}/mlflow.db: a disk is full, of {tmp_path} or ")
    assert line.endswith("what was finished is kept")
