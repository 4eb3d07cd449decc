"""Downloading what a cell measured from the tracking store: its artifact, with the facts about it."""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bitsweep.deploy.facts import FOLDER
from bitsweep.errors import UsageError
from bitsweep.runtime.fingerprint import digest
from bitsweep.runtime.integrity import digest_of
from bitsweep.runtime.store import MANIFEST
from bitsweep.tracking.connection import Connection
from bitsweep.tracking.described import FACTS_HASH, MISSING, MODEL_HASH
from bitsweep.tracking.model import MODEL

if TYPE_CHECKING:
    from mlflow.entities import Run


def download_bundle(connection: Connection, run_id: str, folder: Path) -> None:
    """Write the artifact that a cell measured, and the facts about it, into a folder, which is created.

    Raises:
        UsageError: there is no such run, it measured nothing, or the folder is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: is not empty; name a new folder")
    run = connection.run(run_id)
    if run is None:
        raise UsageError(f"RUN_ID={run_id}: no such run in {connection.uri}; the report's cells.csv has them")
    if run.data.tags.get("kind") != "cell" or run.data.tags.get("status") != "finished":
        raise UsageError(f"RUN_ID={run_id}: not the run of a finished cell; cells.csv of a report has them")
    with connection.explained(), tempfile.TemporaryDirectory() as scratch:
        if not connection.client.list_artifacts(run_id, FOLDER):
            raise UsageError(
                f"RUN_ID={run_id}: its artifacts are gone from {run.info.artifact_uri}; repeat its sweep, which logs "
                f"them again from the store: {run.data.tags['command']}"
            )
        facts = connection.client.download_artifacts(run_id, FOLDER, scratch)
        model = _download_model(connection, run, Path(scratch))
        for what, tag, place in ((FOLDER, FACTS_HASH, Path(facts)), (MODEL, MODEL_HASH, model)):
            if run.data.tags.get(tag) not in (None, digest_of_files(place)):
                raise UsageError(
                    f"RUN_ID={run_id}: its {what} in MLflow changed since it was logged; delete the run, and repeat "
                    f"its sweep, which logs it again from the store: {run.data.tags['command']}"
                )
        try:
            shutil.copytree(facts, folder, dirs_exist_ok=True)
            _tell_command(run.data.tags["command"], folder / "bundle.json")
            shutil.copytree(model, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        except OSError as error:
            raise UsageError(f"{folder}: cannot be made ({error.strerror}); name a new folder that can be") from error


def digest_of_files(place: Path) -> str:
    """One hash of all files in a folder, or of a file, with their names; without the store's own manifest."""
    files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
    base = place if place.is_dir() else place.parent
    return digest([(file.relative_to(base).as_posix(), digest_of(file)) for file in files if file.name != MANIFEST])


def _download_model(connection: Connection, run: "Run", scratch: Path) -> Path:
    """A folder with the files that an engine loads."""
    import mlflow
    import mlflow.exceptions

    outputs = run.outputs.model_outputs if run.outputs else []
    models = [each for each in outputs if _logged_name(connection, each.model_id) in (MODEL, "")]
    if not models and connection.client.list_artifacts(run.info.run_id, MODEL):
        return Path(connection.client.download_artifacts(run.info.run_id, MODEL, str(scratch)))
    for model in models:  # several where the files of one were lost, and logged again
        place, alone = (scratch / f"{model.model_id}{what}" for what in ("", "-alone"))
        for folder in (place, alone):
            folder.mkdir()
        address = f"models:/{model.model_id}"
        with contextlib.suppress(OSError, mlflow.exceptions.MlflowException):
            mlflow.artifacts.download_artifacts(address, dst_path=str(place), tracking_uri=connection.address.uri)
        for file in place.rglob("*.onnx"):
            shutil.copy(file, alone)
            return alone
    again = "" if run.data.tags.get(MISSING, "").startswith(f"{MODEL} is missing") else "delete the run, and "
    raise UsageError(
        f"RUN_ID={run.info.run_id}: its model is not in MLflow; {again}run it again: {run.data.tags['command']}"
    )


def _logged_name(connection: Connection, model_id: str) -> str:
    """What a model of MLflow is called; empty where it was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return str(connection.client.get_logged_model(model_id).name)
    except MlflowException:
        return ""


def _tell_command(command: str, file: Path) -> None:
    """Write into the facts of a bundle which command made it."""
    file.write_text(json.dumps(json.loads(file.read_text()) | {"command": command}, indent=2))
