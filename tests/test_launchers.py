"""Jobs of real launchers: they are what was planned, and one that is lost is one failed cell."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import bitsweep as bs
from bitsweep import stages
from bitsweep.cell import Cell
from bitsweep.errors import MachineError, TrackingError
from bitsweep.job import run_cell
from bitsweep.launching import GaveUp, as_planned, launched, prepare, require_planned
from bitsweep.options import Options
from bitsweep.results import Outcome
from bitsweep.runtime import child, environment
from bitsweep.runtime.store import Store
from bitsweep.search.budget import Budget
from bitsweep.stages import Stage
from bitsweep.tracking.connection import Connection
from tests.conftest import QUICK
from tests.processes import runs, wait_until
from tests.test_sweep import cells, run_apart

LAUNCHERS = {
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "local": "hydra_plugins.hydra_submitit_launcher",
    "ray": "hydra_plugins.hydra_ray_launcher",
}
#: An engine that ends the job which runs it, but not the process that plans it, once a job of `LASTS` is at work.
DIES = """
import os, signal, time
from pathlib import Path
from bitsweep.backends.onnxruntime.backend import OnnxRuntime

os.environ.setdefault("PLANNER", str(os.getpid()))

class Dies(OnnxRuntime):
    def cannot_run(self):
        if os.environ["PLANNER"] != str(os.getpid()):
            while Path("lasts.py").exists() and not any(Path().glob("*.working")):
                time.sleep(0.05)
            Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().cannot_run()
"""
#: An engine that is at work while the job of `DIES` dies.
LASTS = """
import os, time
from pathlib import Path
from bitsweep.backends.onnxruntime.backend import OnnxRuntime

os.environ.setdefault("PLANNER", str(os.getpid()))

class Lasts(OnnxRuntime):
    def cannot_run(self):
        if os.environ["PLANNER"] != str(os.getpid()):
            Path(f"{os.getpid()}.working").touch()
            while not Path("died").exists():
                time.sleep(0.05)
            time.sleep(1)
        return super().cannot_run()
"""
#: An engine that makes nothing.
BREAKS = """
from bitsweep.backends.onnxruntime.backend import OnnxRuntime
from bitsweep.errors import CompressionError

class Breaks(OnnxRuntime):
    def lower(self, program, folder):
        raise CompressionError("it breaks")
"""


def has(package: str) -> bool:
    """Whether a package of a launcher is installed."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def add_engines(workplace: Path, **sources: str) -> None:
    """Let engines of one's own, a class each, be choices in ``--config-dir mine``."""
    (folder := workplace / "mine" / "backend").mkdir(parents=True)
    for name, source in sources.items():
        (workplace / f"{name}.py").write_text(source)
        yaml = f"defaults: [onnxruntime, _self_]\n_target_: {name}.{name.title()}\nname: {name}\n"
        (folder / f"{name}.yaml").write_text(yaml)


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(name, marks=pytest.mark.skipif(not has(package), reason=f"the launcher of {name} is missing"))
        for name, package in LAUNCHERS.items()
        if name != "local"  # see tests/cluster
    ],
)
def test_a_lost_job_is_one_failed_cell(launcher: str, tracked: Path) -> None:
    """And what is made meanwhile goes on."""
    add_engines(tracked, dies=DIES, breaks=BREAKS, lasts=LASTS)
    words = [
        "-m", "--config-dir", "mine", "model=mlp", "model.image_size=8", "train=smoke", "train.max_steps=20",
        "protocol=smoke", "protocol.memory=false", "precision=fp32", "backend=lasts,dies,breaks",
        f"hydra/launcher={launcher}",
    ]  # fmt: skip
    output = run_apart(*words, code=1)
    assert "UserWarning" not in output
    assert "Error executing job" not in output
    statuses = {"dies": "failed", "breaks": "failed", "lasts": "finished"}
    assert {row["backend"]: row["status"] for row in cells()} == statuses
    assert len(list(Path().glob("*.working"))) == 1
    with contextlib.closing(sqlite3.connect("mlflow.db")) as database:
        query = "select r.status from runs r join tags t on t.run_uuid = r.run_uuid where t.key = 'cell_key'"
        assert sorted(database.execute(query)) == [("FAILED",), ("FINISHED",)]  # that of breaks, which is not lost


@pytest.mark.skipif(not has(LAUNCHERS["joblib"]), reason="the launcher of joblib is missing")
def test_a_worker_that_is_lost_between_two_jobs_takes_none_with_it() -> None:
    from hydra_plugins.bitsweep_launchers import JoblibLauncher

    launcher = JoblibLauncher(n_jobs=1)
    job, pool = launcher._submit(os.getpid)
    os.kill(job.result(), signal.SIGKILL)
    wait_until(lambda: pool._flags.broken)
    launcher._idle.append(pool)
    again, pool = launcher._submit(os.getpid)
    assert again.result() != job.result()
    pool.shutdown()


#: A program whose one worker is at a job, and whose other one has nothing to do.
WORKERS = """
import os, time
from pathlib import Path
from hydra_plugins import bitsweep_launchers as launchers

def work():
    with launchers._AT_A_JOB:
        Path("at work").touch()
        while not Path("go").exists():
            time.sleep(0.05)
        Path("done").touch()

launcher = launchers.JoblibLauncher(n_jobs=2)
(idle, _), (busy, pool) = launcher._submit(os.getpid), launcher._submit(os.getpid)
print(idle.result(), busy.result(), flush=True)
launcher._idle.append(pool)
launcher._submit(work)
time.sleep(60)
"""


@pytest.mark.skipif(not has(LAUNCHERS["joblib"]), reason="the launcher of joblib is missing")
def test_workers_end_with_their_command_but_not_before_their_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with subprocess.Popen([sys.executable, "-c", WORKERS], stdout=subprocess.PIPE) as sweep:
        assert sweep.stdout
        idle, busy = map(int, sweep.stdout.readline().split())
        wait_until(Path("at work").exists)
        sweep.terminate()
    wait_until(lambda: not runs(idle))
    assert runs(busy)
    Path("go").touch()
    wait_until(lambda: not runs(busy))
    assert Path("done").exists()


@pytest.fixture
def pair(tracked: Path) -> list[Cell]:
    return bs.grid("model=mlp,lenet precision=fp32")


def test_a_job_on_another_machine_refuses(pair: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    cell = pair[0]
    for stage in ("cell", "baseline"):
        require_planned(cell, as_planned(cell, stage), stage)
    require_planned(cell, "", "cell")
    planned = as_planned(cell, "cell")
    monkeypatch.setattr("bitsweep.launching.physical_cores", lambda: 64)
    monkeypatch.setattr("bitsweep.targets.local.physical_cores", lambda: 64)
    (again,) = bs.grid("model=mlp precision=fp32")
    with pytest.raises(MachineError, match=r"planned on .* cores?.*, but this is .*64 cores: run the command in a job"):
        require_planned(again, planned, "cell")
    require_planned(again, as_planned(cell, "baseline"), "baseline")
    with pytest.raises(MachineError, match="its code, packages or files are others here"):
        require_planned(again, f"{'0' * 64} {as_planned(cell, 'cell').partition(' ')[2]}", "cell")
    assert environment.physical_cores() < 64


@pytest.mark.slow
def test_a_job_that_only_prepares_asks_nothing_of_mlflow(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = bs.grid([*QUICK, "precision=int8", "method=ptq"])
    Store(Path("multirun/store")).discard(stages.ARTIFACT.name, stages.ARTIFACT.key_of(cell))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    outcome = run_cell(cell, Options(stage="artifact"), folder=Path("multirun"), sweep_id="again")
    assert (outcome.status, set(outcome.seconds)) == ("finished", {"artifact"})
    with pytest.raises(TrackingError):
        run_cell(cell, Options(), folder=Path("multirun"), sweep_id="again")


def test_a_job_has_its_children_import_while_it_does(pair: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[str] = []
    monkeypatch.setattr("bitsweep.job.child.warm_up", lambda preload="all": began.append(preload))
    monkeypatch.setattr(Connection, "__init__", lambda *args, **given: began.append("MLflow") or _unreachable())

    def start(**options: Any) -> list[str]:
        began.clear()
        with pytest.raises(TrackingError):
            run_cell(pair[0], Options(**options), folder=Path("multirun"), sweep_id="first")
        return began

    assert start() == ["all", "MLflow"]
    Store(Options().store.folder).folder("artifact", stages.ARTIFACT.key_of(pair[0])).mkdir(parents=True)
    assert start() == [child.FOR_MEASURING, "MLflow"]
    assert start(stage="baseline") == start(search=Budget(minutes=1)) == ["all", "MLflow"]


def _unreachable() -> None:
    raise TrackingError("it does not answer")


def test_what_a_launcher_lost_is_looked_for_by_key_and_the_rest_is_run_alone(pair: list[Cell]) -> None:
    """The launcher gives up all jobs, of which one had done its work; later it loses the other alone."""
    connection, asked = Connection(), []

    def log(cell: Cell) -> str:
        tags = {"kind": "cell", "cell_key": stages.key_of(cell), "status": "finished"}
        run = connection.client.create_run(connection.experiment_id, tags=tags)
        connection.client.set_terminated(run.info.run_id, "FINISHED")
        return str(run.info.run_id)

    log(pair[1])  # of a sweep before
    since_ms = connection.client.create_run(connection.experiment_id).info.start_time + 1
    done = []

    def launch(cells: list[Cell], stage: str) -> list[Outcome]:
        asked.append(len(cells))
        if len(cells) > 1:
            done.append(log(cells[0]))
        raise GaveUp("lost")

    outcomes = launched(launch, pair, "cell", connection=connection, is_there=_nothing, since_ms=since_ms)
    assert asked == [2, 1]
    assert [(each.status, each.run_id) for each in outcomes] == [("finished", done[0]), ("failed", "")]
    assert replace(outcomes[1], lost=False) == Outcome(status="failed", reason="lost")
    assert launched(launch, [], "cell", connection=connection, is_there=_nothing, since_ms=0) == []

    def loses_one_worker(cells: list[Cell], stage: str) -> list[Outcome]:
        asked.append(len(cells))
        if len(cells) == 4:
            log(cells[0])
            raise GaveUp("lost by chance")
        return [Outcome(status="finished") for _ in cells]

    asked.clear()
    four = bs.grid("model=mlp,lenet precision=fp32,fp16")
    ended = launched(loses_one_worker, four, "cell", connection=connection, is_there=_nothing, since_ms=since_ms)
    assert (asked, [each.status for each in ended]) == ([4, 3], ["finished"] * 4)


def _nothing(stage: Stage, key: str) -> bool:
    return False


def test_programs_are_made_before_anything_is_measured_and_each_once() -> None:
    """Two engines share a program; a cell that fails is not prepared any further."""
    cells = bs.grid("model=lenet,mlp precision=fp32 backend=onnxruntime,openvino")
    made: list[str] = []
    waves: list[list[str]] = []

    def launch(asked: Sequence[Cell], stage: str) -> list[Outcome]:
        assert stage == "artifact"
        waves.append([f"{cell.model.name} {cell.backend.name}" for cell in asked])
        good = [cell for cell in asked if cell.model.name != "mlp"]
        made.extend(made_by.key_of(cell) for cell in good for made_by in (stages.COMPRESSED, stages.ARTIFACT))
        return [Outcome(status="finished" if cell in good else "failed") for cell in asked]

    failed = prepare(cells, launch, lambda stage, key: key in made)
    assert waves == [["lenet openvino", "mlp openvino"], ["lenet onnxruntime", "mlp onnxruntime"]]
    assert [cell.name for cell in failed] == ["mlp-none-fp32-openvino-digits", "mlp-none-fp32-onnxruntime-digits"]
    assert prepare([], launch, _nothing) == {}


#: A program that lets jobs wait for a file, and prints what they answer.
PROGRAM = """
import sys, time
from pathlib import Path
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.bitsweep_launchers import LocalLauncher

class Waits(LocalLauncher):
    def __call__(self, overrides, *more):
        Path(f"{overrides[0]} starts").open("x").close()
        while not Path("go").exists():
            time.sleep(0.05)
        answer = JobReturn(status=JobStatus.COMPLETED)
        answer.return_value = overrides[0]
        return answer

launcher = Waits(submitit_folder=f"{sys.argv[1]}/%j", known_jobs="jobs", parameters={"timeout_min": 5}, lowering={})
told = [[name, f"hydra.sweep.dir={sys.argv[1]}"] for name in sys.argv[2:]]
print([job.return_value for job in launcher.launch(told, 0)], flush=True)
"""


@pytest.mark.skipif(not has(LAUNCHERS["local"]), reason="the launcher of local is missing")
def test_a_job_has_ended_if_the_queue_says_so_or_does_not_know_it() -> None:
    from bitsweep.submitted import Queue

    queue = Queue()
    for job in ("7_0", "7_1", "7_2", "8"):
        queue.register_job(job)
    told = queue.read_info(b"7_0|CONFIGURING\n7_1|NODE_FAIL\n7_2|PENDING\n9|RUNNING\n")
    states = {job: about["State"] for job, about in told.items()}
    assert states == {"7_0": "RUNNING", "7_1": "ENDED", "7_2": "RUNNING", "8": "ENDED"}


@pytest.mark.slow
@pytest.mark.skipif(not has(LAUNCHERS["local"]), reason="the launcher of local is missing")
def test_the_same_command_waits_for_the_jobs_of_one_that_was_killed(workplace: Path) -> None:
    Path("program.py").write_text(PROGRAM)
    start = [sys.executable, "program.py"]
    with subprocess.Popen([*start, "first", "a", "b"]) as killed:
        wait_until(lambda: all(Path(f"{name} starts").exists() for name in "ab"))
        wait_until(lambda: len(list(Path("jobs").glob("*.json"))) == 2)
        killed.kill()
    with subprocess.Popen([*start, "second", "a", "b", "c"], stdout=subprocess.PIPE, text=True) as again:
        assert again.stdout
        assert "waiting for 2 of the jobs" in again.stdout.readline()
        Path("go").touch()
        assert again.stdout.read() == "['a', 'b', 'c']\n"
    assert not list(Path("jobs").iterdir())
