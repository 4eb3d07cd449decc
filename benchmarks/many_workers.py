"""Many workers at once, some of which are killed: are cells lost or logged twice, and what do they cost beside that?

    MLFLOW_TRACKING_URI=http://127.0.0.1:5000 python benchmarks/many_workers.py --cells 1000 --workers 50

One cell is run. Then a sweep of many has real jobs of a launcher, a real store and a real server, while its stages are
replaced by sleeps: each waits as long as it took, and leaves copies of the files that it made. Each worker is a machine
of its own: it does not wait until others have measured. A job kills its worker by chance, in the middle of a stage. If
cells are lost, the same command is given again, as a user would. Ideal is the time that the sleeps alone need.

Workers of one machine share its cores, those of a cluster do not. So the sleeps may be longer, until the workers need
less than the cores have beside them: those of a larger network, from a store where its cell has been measured
(``--like multirun/store``), or all of them by a factor (``--longer 20``). And workers start with their imports done:
each waits as long as those took once, as it would on a machine of its own.
"""

import argparse
import contextlib
import functools
import itertools
import json
import multiprocessing.forkserver
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from joblib.externals import loky
from omegaconf import DictConfig

from bitsweep import hydra_app, stages
from bitsweep.results import Outcome
from bitsweep.runtime import child, machine
from bitsweep.runtime.store import MANIFEST
from bitsweep.tracking.connection import Connection

#: Where this benchmark works; jobs find it by this variable.
PLACE = "BITSWEEP_BENCHMARK"
#: Share of the cells in whose jobs the worker is killed.
KILLED = "BITSWEEP_BENCHMARK_KILLED"
#: Seconds that imports of a worker take.
IMPORTS = "BITSWEEP_BENCHMARK_IMPORTS"
#: What a worker imports until it has run a job.
IMPORTED = ("hydra_plugins.bitsweep_launchers", "bitsweep.hydra_app", "mlflow", "bitsweep.tracking.logger")
#: Store whose cell tells how long stages take.
LIKE = "BITSWEEP_BENCHMARK_LIKE"
#: How many times as long as they took stages are to wait.
LONGER = "BITSWEEP_BENCHMARK_LONGER"
CELL = (
    "model=mlp", "model.image_size=8", "train=smoke", "train.max_steps=20", "protocol=smoke", "precision=int8",
)  # fmt: skip
#: Cells that share a baseline.
SHARED = 20
STAGES = (
    stages.DATA, stages.BASELINE, stages.COMPRESSED, stages.ARTIFACT, stages.PROBE, stages.MEASUREMENT,
    stages.EVIDENCE, stages.BASELINE_EVIDENCE,
)  # fmt: skip
#: Function -> its stage, and how many functions that has.
_STAGE_OF = {work.__name__: (stage.name, len(stage.work)) for stage in STAGES for work in stage.work}


def sleep_instead(function: Callable[..., None], arguments: Mapping[str, Any], *, folder: Path, **given: Any) -> None:
    """Stand for a stage: wait as long as it took, and leave its files."""
    if function.__name__ not in _STAGE_OF:
        return
    kind, functions = _STAGE_OF[function.__name__]
    known, examples = (
        list((Path(store) / kind).glob(f"*/{MANIFEST}")) for store in (os.environ[LIKE], f"{os.environ[PLACE]}/example")
    )
    seconds = max(json.loads(file.read_text())["seconds"] for file in known) * float(os.environ[LONGER]) / functions
    if function.__name__ in ("compress", "evaluate") and random.random() < float(os.environ[KILLED]) / 2:
        time.sleep(seconds / 2)
        (Path(os.environ[PLACE]) / "killed" / f"{time.time_ns()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(seconds)
    shutil.copytree(min(examples).parent, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
    _note("slept", seconds=seconds)


def begin(place: str) -> None:
    """Begin as a worker."""
    os.chdir(place)
    time.sleep(seconds := float(os.environ[IMPORTS]))
    _note("imported", seconds=seconds)


def _start_workers_fast(place: str) -> None:
    """Let workers start with what they import, and wait as long as that takes where nothing else runs."""
    timed = f"import time, {', '.join(IMPORTED)}; print(time.process_time())"
    os.environ[IMPORTS] = subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True).stdout.strip()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([child._PRELOAD, *IMPORTED])
    multiprocessing.forkserver.ensure_running()
    started = functools.partial(loky.ProcessPoolExecutor, context=context, initializer=begin, initargs=(place,))
    # Of what these are given otherwise, nothing holds for children of a server.
    loky.ProcessPoolExecutor = lambda max_workers, **given: started(max_workers=max_workers)


def _note(what: str, **figures: object) -> None:
    with (Path(os.environ[PLACE]) / what).open("a") as file:
        file.write(json.dumps(figures) + "\n")


def _noted(what: str) -> list[dict[str, Any]]:
    file = Path(os.environ[PLACE]) / what
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def simulated_job(config: DictConfig) -> Outcome | None:
    """A job of a sweep with sleeps instead of stages, on what stands for a machine of its own."""
    began, used = time.time(), time.process_time()
    own = Path(os.environ[PLACE]) / "locks" / str(os.getpid())
    own.mkdir(parents=True, exist_ok=True)
    os.environ[machine.VARIABLE] = str(own)
    child.call, child.warm_up = sleep_instead, lambda *preload: None
    try:
        return hydra_app.run_job(config)
    finally:
        used = time.process_time() - used
        _note("jobs", stage=config.stage, began=began, ended=time.time(), used=used, worker=os.getpid())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1000, help=f"a multiple of {SHARED}")
    parser.add_argument("--workers", type=int, default=50)
    parser.add_argument("--killed", type=float, default=0.05, help="share of the cells whose worker is killed")
    parser.add_argument("--longer", type=float, default=1, help="how many times as long stages wait as they took")
    parser.add_argument("--like", help="store where another cell has been measured: wait as long as that took")
    options = parser.parse_args()
    if not os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
        parser.error("MLFLOW_TRACKING_URI: give the address of a server")
    like = options.like and str(Path(options.like).absolute())
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        for name in ("killed", "locks"):
            Path(name).mkdir()
        os.environ |= {PLACE: place, LIKE: like or f"{place}/example"}
        os.environ |= {KILLED: str(options.killed), LONGER: str(options.longer)}
        _start_workers_fast(place)
        first = 1 + random.randrange(2**31)  # cells that the server does not know
        _command([*CELL, "store.folder=example", f"seed={first - 1}"])
        hydra_app.run_job = simulated_job
        words = [
            "-m", *CELL, f"seed=range({first},{first + options.cells // SHARED})",
            f"method.calibration_seed=range({SHARED})",
            "hydra/launcher=joblib", f"hydra.launcher.n_jobs={options.workers}",
        ]  # fmt: skip
        began, commands = time.monotonic(), 1
        while _command(words) == 1:
            commands += 1
        _tell(options, first, wall_s=time.monotonic() - began, commands=commands)


def _command(words: list[str]) -> int:
    """Run a command in this process; returns its exit code."""
    began, used = time.time(), time.process_time()
    try:
        hydra_app.main(words)
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        _note("commands", began=began, ended=time.time(), used=time.process_time() - used)
    return 0


def _tell(options: argparse.Namespace, first: int, *, wall_s: float, commands: int) -> None:
    """Print what was found, from what the server has."""
    slept_s, killed = sum(each["seconds"] for each in _noted("slept")), len(list(Path("killed").iterdir()))
    found = Connection()
    runs = list(found.search("tags.kind = 'cell' and attributes.status = 'FINISHED'"))
    seeds = range(first, first + options.cells // SHARED)
    counted = Counter(run.data.tags["cell_key"] for run in runs if int(run.data.params["seed"]) in seeds)
    ideal_s = slept_s / options.workers
    print(f"{options.cells} cells on {options.workers} workers, {killed} workers killed, {commands} commands")
    print(f"cells with one finished run: {sum(count == 1 for count in counted.values())}")
    print(f"lost: {options.cells - len(counted)}, double: {sum(count > 1 for count in counted.values())}")
    print(f"wall {wall_s:.0f} s, slept {slept_s:.0f} s, ideal {ideal_s:.0f} s: {100 * ideal_s / wall_s:.0f} % of it")
    _tell_the_rest(_noted("jobs"), options, slept_s=slept_s, wall_s=wall_s)


def _tell_the_rest(jobs: list[dict[str, Any]], options: argparse.Namespace, *, slept_s: float, wall_s: float) -> None:
    """Print what workers did while they did not sleep, as shares of their time."""
    jobs.sort(key=lambda job: job["began"])
    used_s, busy_s = sum(job["used"] for job in jobs), sum(job["ended"] - job["began"] for job in jobs)
    waves = [list(wave) for _, wave in itertools.groupby(jobs, key=lambda job: job["stage"])]
    within_s = sum(max(job["ended"] for job in wave) - wave[0]["began"] for wave in waves) * options.workers
    whole_s = wall_s * options.workers
    parts = {
        "sleeping as long as the work": slept_s,
        "computing in jobs": used_s,
        "waiting in jobs, for a core, the server, a lock": busy_s - slept_s - used_s,
        "without a job: between two, until the last of a wave has ended, after a kill": within_s - busy_s,
        "between waves: planning, starting workers, reporting": whole_s - within_s,
    }
    print(f"CPU of jobs beside their work: {used_s / options.cells:.2f} s a cell, on {os.cpu_count()} cores")
    for what, seconds in parts.items():
        print(f"{100 * seconds / whole_s:5.1f} %  {what}")


if __name__ == "__main__":
    sys.exit(main())
