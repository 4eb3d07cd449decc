"""Grids on real launchers and a real tracking server: lost jobs, killed commands, and hosts that share no folder."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bitsweep.tracking.connection import Connection
from tests.cluster.services import wait_until
from tests.test_launchers import DIES, LAUNCHERS, PROGRAM, add_engines, has
from tests.test_sweep import cells, command
from tests.test_sweep import run_apart as run

#: An engine whose cells wait for a file before they go on, but for the process that plans them.
WAITS = """
import os, time
from pathlib import Path
from bitsweep.backends.onnxruntime.backend import OnnxRuntime

os.environ.setdefault("PLANNER", str(os.getpid()))

class Waits(OnnxRuntime):
    def cannot_run(self):
        while os.environ["PLANNER"] != str(os.getpid()) and not Path("go").exists():
            Path("waiting").touch()
            time.sleep(0.1)
        return super().cannot_run()
"""
QUICK = [
    "model=mlp", "model.image_size=8", "train=smoke", "train.max_steps=20", "protocol=smoke", "protocol.memory=false",
]  # fmt: skip


@pytest.fixture
def project(workplace: Path, tracking: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, whose cells no other test has, with the server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    add_engines(workplace, dies=DIES, waits=WAITS)
    return workplace


@pytest.fixture
def slurm(cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm for the commands of a test."""
    _require("slurm")
    for name, value in cluster.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("launcher", "seed"), [("joblib", "1"), ("local", "2"), ("ray", "3"), ("slurm", "4")])
def test_a_grid_with_jobs_that_are_lost(
    launcher: str, seed: str, project: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    _require(launcher)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # paths of its sockets must be short
    if launcher == "slurm":
        request.getfixturevalue("slurm")
    output = run(
        "-m", "--config-dir", "mine", *QUICK, "precision=fp32,int8", "backend=dies,onnxruntime", f"seed={seed}",
        f"hydra/launcher={launcher}", code=1,
    )  # fmt: skip
    assert "UserWarning" not in output
    assert Counter((row["backend"], row["status"]) for row in cells()) == {
        ("dies", "failed"): 2, ("onnxruntime", "finished"): 2,
    }  # fmt: skip
    assert _logged(seed) == {("baseline", "FINISHED"): 1, ("cell", "FINISHED"): 2}


def test_jobs_of_a_command_that_was_killed_are_waited_for(slurm: None, project: Path) -> None:
    words = [
        "-m", "--config-dir", "mine", *QUICK, "precision=fp32", "backend=waits", "model.hidden=[8,8],[9,9]", "seed=100",
        "hydra/launcher=slurm",
    ]  # fmt: skip
    log = Path("first.txt")
    with log.open("w") as output, subprocess.Popen(command(*words), stdout=output, stderr=output) as submitter:
        try:
            wait_until(Path("waiting").exists, log)
        finally:
            submitter.kill()
    with subprocess.Popen(command(*words), stdout=subprocess.PIPE, text=True) as again:
        assert again.stdout
        said = iter(again.stdout.readline, "")
        assert "waiting for 2 of the jobs that an earlier command submitted\n" in said
        Path("go").touch()
        again.stdout.read()
    assert again.returncode == 0
    assert [row["status"] for row in cells()] == ["finished", "finished"]
    assert _logged("100") == {("baseline", "FINISHED"): 2, ("cell", "FINISHED"): 2}
    assert not list(Path("multirun/store/jobs").iterdir())


def test_more_jobs_than_an_array_may_have(slurm: None, workplace: Path) -> None:
    Path("program.py").write_text(PROGRAM.replace("LocalLauncher", "SlurmLauncher"))
    Path("go").touch()
    told = subprocess.run([sys.executable, "program.py", "sweep", *"abcde"], capture_output=True, text=True)
    assert (told.stdout, told.stderr) == ("['a', 'b', 'c', 'd', 'e']\n", "")
    assert len({job.name.partition("_")[0] for job in Path("sweep").iterdir() if job.is_dir()}) == 2
    assert not list(Path("jobs").iterdir())


def test_two_hosts_with_a_store_each(project: Path) -> None:
    """The second host has another store, and trains and compresses nothing again."""
    first = ["-m", *QUICK, "seed=200", "precision=int8", "store.folder=first"]
    run(*first)
    assert "1 reuse" in run(*first, "store.fetch=true")  # which hands on what was made before
    words = ["-m", *QUICK, "seed=200", "store.fetch=true"]
    output = run(*words, "precision=fp32,int8", "store.folder=second")
    assert "baselines to train: none" in output
    assert sorted(row["status"] for row in cells()) == ["finished", "reused"]
    assert _logged("200") == {("baseline", "FINISHED"): 1, ("cell", "FINISHED"): 2}
    for kind in ("baseline", "compressed", "artifact"):
        second = {file.parent.name: file.read_bytes() for file in Path("second", kind).glob("*/manifest.json")}
        assert second
        assert all(Path("first", kind, key, "manifest.json").read_bytes() == found for key, found in second.items())


def _require(launcher: str) -> None:
    if not has({**LAUNCHERS, "slurm": LAUNCHERS["local"]}[launcher]):
        pytest.skip(f"the launcher is missing: pip install 'bitsweep[{launcher}]'")


def _logged(seed: str) -> Counter[tuple[str, str]]:
    """Kind and status of the runs with a seed."""
    connection = Connection()
    runs = connection.search(f"params.seed = '{seed}'")
    return Counter((run.data.tags["kind"], run.info.status) for run in runs)
