"""Services that the tests of this folder share. They run where they are asked for: see ``tests/cluster/run``."""

import os
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.cluster import services

#: Set to any value it lets these tests set services up.
VARIABLE = "BITSWEEP_TEST_CLUSTER"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Nobody is surprised by daemons, or waits for them."""
    if not os.environ.get(VARIABLE):
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=f"sets up real services: tests/cluster/run, or {VARIABLE}=1"))


@pytest.fixture(scope="session")
def tracking() -> Iterator[str]:
    """Address of an MLflow server."""
    if reason := services.lacking("setpriv"):
        pytest.skip(reason)
    if services.postgres_programs() is None or find_spec("psycopg2") is None:
        pytest.skip("PostgreSQL or psycopg2 is not installed: tests/cluster/run installs them")
    # Other users must reach the folder, and paths of sockets must be short.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, services.mlflow_server(Path(folder)) as address:
        yield address


@pytest.fixture(scope="session")
def cluster() -> Iterator[dict[str, str]]:
    """Variables by which the commands of Slurm find a cluster of one node."""
    if reason := services.lacking("munged", "slurmctld", "slurmd", "sbatch"):
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, services.slurm(Path(folder)) as variables:
        yield variables
