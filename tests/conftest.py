"""What tests share: real sample data where there is some, and a folder of their own to work in."""

import contextlib
import gc
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from filelock import FileLock
from hypothesis import settings

from bitsweep.runtime import child

# What the suite imports is no garbage: looking for it takes a second of every worker.
gc.set_threshold(100_000)

# How long an example takes says nothing on a busy machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

REPOSITORY = Path(__file__).parents[1]
#: What makes the cells of a sweep as small as they get, and the grid that tests share.
QUICK = ("train=smoke", "train.max_steps=20", "protocol=smoke", "model=lenet", "model.image_size=28")
GRID = ("-m", *QUICK, "precision=int8,fp32,fp32", "method=ptq,none")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """A test and what it sets up draw the same random numbers, whichever tests ran before it in its process.

    Nor does it compute on the threads of an engine that they ran: idle ones would take the cores of other processes.
    """
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))


@pytest.fixture(scope="session", autouse=True)
def _own_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Sweeps of one process of the suite need not wait for those of another: the lock of the machine lies there."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / "torchinductor"))
    os.environ["TMPDIR"] = os.environ["BITSWEEP_LOCK_FOLDER"] = str(tmp_path_factory.mktemp("own"))
    tempfile.tempdir = None
    child.warm_up()  # a command that only draws would start a server whose children can do nothing else


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Folder of real sample data sets, named by BITSWEEP_TEST_DATA."""
    folder = os.environ.get("BITSWEEP_TEST_DATA")
    if not folder:
        pytest.skip("BITSWEEP_TEST_DATA names no folder of real sample data")
    return Path(folder)


def _furnish(folder: Path) -> None:
    """Put the command and its configuration there."""
    for name in ("run.py", "conf"):
        (folder / name).symlink_to(REPOSITORY / name)


@pytest.fixture(scope="module")
def composing() -> Iterator[None]:
    """Hydra composes configurations of ``conf`` meanwhile, and reads each file once for all tests of a module."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from bitsweep.composing import files_read_once

    with (
        initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"),
        files_read_once(GlobalHydra.instance().config_loader()),
    ):
        yield


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command and its configuration in an empty folder, which is the working directory."""
    _furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@contextlib.contextmanager
def as_a_program(name: str, **environment: str) -> Iterator[IO[str]]:
    """Let this process be a program of some name: that spares the imports of another one, and of its children.

    Returns:
        The file of what it prints.
    """
    handlers = logging.root.handlers[:]
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryFile("w+") as printed,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        patch.setattr(sys, "argv", [name])
        for variable, value in environment.items():
            patch.setenv(variable, value)
        try:
            yield printed
        finally:
            for handler in logging.root.handlers:
                if handler not in handlers:
                    handler.close()
            logging.root.handlers[:] = handlers


def run(*words: str, code: int = 0, **environment: str) -> str:
    """What the command prints within this process, which has imported everything for the tests before.

    It must end with the given exit code and without a traceback.
    """
    from bitsweep import cli

    ended = 0
    with as_a_program("run.py", **environment) as printed:
        try:
            cli.run(words, conf=Path("conf").resolve())
        except SystemExit as exit:
            ended = int(exit.code or 0)
        printed.seek(0)
        output = printed.read()
    assert ended == code, output
    assert "Traceback" not in output
    return output


def _made_once(name: str, make: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that one process of the suite fills for all."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            made = folder.with_suffix(".unfinished")
            made.mkdir()
            make(made)
            made.rename(folder)
    return folder


@pytest.fixture(scope="session")
def _tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a database of MLflow in which there is nothing yet: its tables alone take a second."""

    def make(folder: Path) -> None:
        from bitsweep.tracking.address import find_address, prepare_database

        with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            prepare_database(find_address(), read_only=False)

    return _made_once("tables", make, tmp_path_factory)


@pytest.fixture
def tracked(_tables: Path, workplace: Path) -> Path:
    """The same with an empty database of MLflow's, for what is not about how one is made."""
    shutil.copy(_tables / "mlflow.db", workplace)
    with contextlib.closing(sqlite3.connect("mlflow.db")) as database, database:
        place = (workplace / "mlruns").as_uri()
        database.execute("update experiments set artifact_location = ? || '/' || experiment_id", (place,))
    return workplace


@pytest.fixture(scope="session")
def _measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder where the command has measured `GRID`."""

    def make(folder: Path) -> None:
        _furnish(folder)
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        command = [sys.executable, "run.py", *GRID, "register=digits"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        (folder / "output.txt").write_text(done.stdout)

    return _made_once("measured", make, tmp_path_factory)


@pytest.fixture
def measured(_measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a copy of a project where `GRID` was measured, with what the command printed then."""
    shutil.copytree(_measured, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path
