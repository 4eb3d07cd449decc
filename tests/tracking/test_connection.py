"""The database of the tracking store, killed while it is made, made twice at once, and without room."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitsweep.tracking.connection import Connection
from tests.processes import wait_until

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
FILL = """
connection = Connection()
with open("rest", "wb", buffering=0) as rest:
    try:
        while rest.write(bytes(1 << 12)):
            pass
    except OSError:
        pass
try:
    with connection.explained():
        for _ in range(1000):
            connection.client.create_run(connection.experiment_id, tags={"note": "x" * 4000})
except BitsweepError as error:
    print(error)
"""


ASK_A_SERVER = """
import sys
try:
    Connection()
except BitsweepError as error:
    print("sqlalchemy" in sys.modules, error)
"""


def connect(folder: Path, script: str = CONNECT) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return subprocess.Popen(
        [sys.executable, "-c", script], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE
    )


def test_a_database_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITSWEEP_LOCK_FOLDER", str(tmp_path))
    folder = tmp_path / "work"
    folder.mkdir()

    def begun() -> bool:
        with contextlib.suppress(FileNotFoundError):  # it was complete before one looked at it
            return any(file.stat().st_size for file in tmp_path.glob("bitsweep-*/database-*/*.db"))
        return False

    with connect(folder) as victim:
        wait_until(begun)
        victim.kill()
    assert not list(folder.iterdir())
    with connect(folder) as again:
        assert again.communicate()[0].strip() == "1"
    assert [file.name for file in folder.glob("mlflow.db*")] == ["mlflow.db"]


def test_two_that_start_at_once_share_one(tmp_path: Path) -> None:
    with connect(tmp_path) as one, connect(tmp_path) as other:
        assert {process.communicate()[0].strip() for process in (one, other)} == {"1"}
    assert [file.name for file in tmp_path.glob("mlflow.db*")] == ["mlflow.db"]


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with connect(tmp_path, CONNECT + WRITE) as full:
        *_, line = full.communicate()[0].splitlines()
    assert line.startswith(f"sqlite:///{tmp_path}/mlflow.db: a disk is full, of {tmp_path} or ")
    assert line.endswith("what was finished is kept")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_database_on_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    """MLflow has a traceback of its own for it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        done = subprocess.run(
            [sys.executable, "-c", CONNECT + FILL], cwd=disk, capture_output=True, text=True, check=False
        )
    finally:
        subprocess.run(["umount", disk], check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[1].startswith(f"sqlite:///{disk}/mlflow.db: a disk is full, of {disk} or ")


def test_whoever_asks_a_server_imports_nothing_of_databases(tmp_path: Path) -> None:
    script = CONNECT.replace("print(Connection().experiment_id)", ASK_A_SERVER)
    environment = os.environ | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert done.stdout.startswith("False MLFLOW_TRACKING_URI=http://127.0.0.1:9"), done.stdout + done.stderr


def test_no_request_asks_for_more_than_a_busy_server_can_tell(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitsweep.tracking.connection._IN_A_REQUEST", 2)
    connection, asked = Connection(), []
    for _ in range(5):
        connection.client.create_run(connection.experiment_id)
    search = connection.client.search_runs
    monkeypatch.setattr(
        connection.client,
        "search_runs",
        lambda *given, **named: asked.append(named["max_results"]) or search(*given, **named),
    )
    assert len(list(connection.search("attributes.status = 'RUNNING'"))) == 5
    assert asked == [2, 2, 2]
