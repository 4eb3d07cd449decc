"""Errors of MLflow and of what lies under it become one line."""

from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from bitsweep.errors import TrackingError
from bitsweep.tracking.address import Address
from bitsweep.tracking.advice import explain
from bitsweep.tracking.connection import Connection

SERVER = Address(uri="http://me:secret@host:5000", shown="http://me:***@host:5000", database=None, chosen=True)
HINT = "or unset MLFLOW_TRACKING_URI to use mlflow.db in this folder"


def test_the_reason_is_the_cause_of_a_failed_connection() -> None:
    try:
        try:
            raise ConnectionRefusedError(111, "Connection refused")
        except OSError as refused:
            raise MlflowException(f"request failed with exception {refused}, " * 9) from refused
    except MlflowException as error:
        line = explain(error, SERVER)
    assert line == f"{SERVER.named}: does not answer; start it, {HINT} ([Errno 111] Connection refused)"
    assert "secret" not in line


def test_a_server_of_something_else_is_named_as_such() -> None:
    page = "failed with error code 404 != 200. Response body: " + "<p>secret</p>" * 99
    line = explain(MlflowException(page), SERVER)
    assert f"answers, but not as MLflow does; correct the address, {HINT} (failed with" in line
    assert "secret" not in line
    assert line.endswith("***</p>)")
    assert len(line) < 500


@pytest.mark.parametrize(
    "address",
    [
        "mlflow.db",
        "file:///tmp",
        "127.0.0.1:5000",
        "localhost:5000",
        "s3://b/x",
        "postgresql://h:port/x",
        "sqlite://u:s@h/x",
    ],
)
def test_what_is_no_address_is_called_so(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(TrackingError, match=r"is no address that MLflow takes; correct it, as in http://HOST:5000 or"):
        Connection(read_only=True)


def test_a_file_in_the_place_of_artifacts_is_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "mlruns").touch()
    address = Address(
        uri="sqlite:////mlflow.db", shown="sqlite:////mlflow.db", database=tmp_path / "mlflow.db", chosen=False
    )
    with pytest.raises(NotADirectoryError) as raised:
        (tmp_path / "mlruns" / "bitsweep").mkdir()
    assert "its artifacts need a folder where there is a file; remove the file" in explain(raised.value, address)
    refused = PermissionError(13, "Permission denied", "/there/mlruns")
    assert "/there/mlruns cannot be written; make it writable" in explain(refused, address)
