"""The recommended artifact as a version of a registered model of MLflow, which takes pictures and names classes."""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bitsweep.cell import Cell
from bitsweep.deploy import bundle
from bitsweep.errors import BitsweepError, ConfigError, UsageError
from bitsweep.pipeline import StageRunner
from bitsweep.report import SweepReport
from bitsweep.report.card import model_card
from bitsweep.report.choice import recommended_rows
from bitsweep.report.row import Row
from bitsweep.runtime import environment
from bitsweep.runtime.progress import Progress
from bitsweep.stages import ARTIFACT
from bitsweep.tracking.address import Address
from bitsweep.tracking.bundles import download_bundle
from bitsweep.tracking.connection import Connection, client_of, explained

#: Alias of the version that the latest sweep recommends.
ALIAS = "recommended"
#: Name of such a model among those of a cell's run.
_CLASSIFIER = "classifier"
#: Tag of the key of the artifact that a model or a version of it has.
_KEY = "artifact_key"
#: As many letters as MLflow keeps of a description.
_LONGEST = 5000


def check_registrable(cells: Sequence[Cell]) -> None:
    """Refuse a grid of which one artifact cannot be registered.

    Raises:
        ConfigError: it has several data sets, with a recommendation each.
    """
    if len(names := sorted({cell.dataset.name for cell in cells})) > 1:
        raise ConfigError(
            f"register: the grid has {len(names)} data sets ({', '.join(names)}), each with a recommendation of its "
            "own; sweep them one by one, each with a name of its own"
        )


def register(name: str, report: SweepReport, cells: Sequence[Cell], connection: Connection, runner: StageRunner) -> str:
    """Register what a report recommends, unless that artifact is registered by this name, and let the alias name it.

    Args:
        cells: of the report.
        runner: starts the process that logs the model.

    Returns:
        What was done, in a line.

    Raises:
        BitsweepError: nothing is recommended, or it cannot be registered.
    """
    row = next(iter(recommended_rows(report)), None)
    if row is None:
        raise BitsweepError(f"register={name}: nothing was registered, because nothing is recommended")
    cell = next((cell for cell in cells if cell.choices == row.cell), None)
    if cell is None or not row.run_id:
        raise BitsweepError(
            f"register={name}: nothing was registered, because {report.name_of(row)} is recommended and has no run: "
            "add method=none precision=fp32 to the grid"
        )
    key = ARTIFACT.key_of(cell)
    address = f"models:/{name}@{ALIAS}"
    card = model_card(report, row, address=address)[:_LONGEST]
    # Two sweeps may end at the same time.
    with runner.store.holding("register", hashlib.sha256(name.encode()).hexdigest()[:16]), connection.explained():
        client = connection.client
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        known = [each for each in client.search_model_versions(f"name = '{name}'") if each.tags.get(_KEY) == key]
        if known:
            version = str(known[0].version)
            client.update_model_version(name, version, description=card)
        else:
            model_id = _logged(connection, row, key) or _log(connection, row, key, runner)
            made = client.create_model_version(
                name, f"models:/{model_id}", run_id=row.run_id, model_id=model_id, description=card,
                tags={_KEY: key, "sweep": report.sweep_id, "cell": cell.name},
            )  # fmt: skip
            version = str(made.version)
        client.set_registered_model_alias(name, ALIAS, version)
    return f"registered: {address} is version {version}, {report.name_of(row)}{' (as before)' if known else ''}"


def _logged(connection: Connection, row: Row, key: str) -> str:
    """The model of an artifact that a start which was killed has logged whole; empty where there is none."""
    run = connection.client.get_run(row.run_id)
    for output in run.outputs.model_outputs if run.outputs else []:
        model = connection.client.get_logged_model(output.model_id)
        if (model.name, model.tags.get(_KEY), str(model.status)) == (_CLASSIFIER, key, "READY"):
            return str(model.model_id)
    return ""


def _log(connection: Connection, row: Row, key: str, runner: StageRunner) -> str:
    """Log the model of a cell's artifact; gives its id."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "bundle"
        try:
            download_bundle(connection, row.run_id, folder)
            bundle.complete(folder)
        except UsageError as error:  # what was measured stays as it is
            raise BitsweepError(f"nothing was registered: {error}") from error
        given = {
            "address": connection.address, "experiment_id": connection.experiment_id, "run_id": row.run_id,
            "bundle": folder, "key": key,
        }  # fmt: skip
        runner.call(log_classifier, given)
    return _logged(connection, row, key)


def log_classifier(
    *, address: Address, experiment_id: str, run_id: str, bundle: Path, key: str, folder: Path, progress: Progress
) -> None:
    """Log a bundle as a model of a run that takes pictures. MLflow runs its program, so this has its own process.

    Raises:
        TrackingError: the tracking store cannot be used.
    """
    import mlflow
    import mlflow.pyfunc
    from mlflow.models import Model

    needs = [line for line in (bundle / "requirements.txt").read_text().split("\n") if line]
    with explained(address):
        client_of(address)
        mlflow.set_experiment(experiment_id=experiment_id)
        Model.log(
            artifact_path=None,
            name=_CLASSIFIER,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            tags={_KEY: key},
            python_model=str(Path(__file__).with_name("classifier.py")),
            artifacts={"bundle": str(bundle)},
            pip_requirements=[f"mlflow=={environment.version_of('mlflow')}", *needs],
        )
