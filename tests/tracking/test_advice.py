"""Errors of MLflow and of what lies under it become one line."""

from mlflow.exceptions import MlflowException

from bitsweep.tracking.address import Address
from bitsweep.tracking.advice import explain

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
