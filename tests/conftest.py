"""What tests share: real sample data where there is some, and a folder of their own to work in."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says nothing on a busy machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def _own_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Sweeps of one process of the suite need not wait for those of another: the lock of the machine lies there."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / "torchinductor"))
    os.environ["TMPDIR"] = os.environ["BITSWEEP_LOCK_FOLDER"] = str(tmp_path_factory.mktemp("own"))
    tempfile.tempdir = None


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Folder of real sample data sets, named by BITSWEEP_TEST_DATA."""
    folder = os.environ.get("BITSWEEP_TEST_DATA")
    if not folder:
        pytest.skip("BITSWEEP_TEST_DATA names no folder of real sample data")
    return Path(folder)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the command and its configuration in an empty folder, which is the working directory."""
    (tmp_path / "run.py").symlink_to(REPOSITORY / "run.py")
    (tmp_path / "conf").symlink_to(REPOSITORY / "conf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path
