"""Measures an artifact on a machine that has NumPy, psutil and the engine, and of this project only what this imports.

    python -m bitsweep.measuring.on_device FOLDER          # measure what request.json says, into FOLDER/results
    python -m bitsweep.measuring.on_device --describe NAME...   # this machine, and versions of distributions

What it prints after ``STEP`` is how far it is; the last line on standard error says why it failed.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil

from bitsweep.data.network_input import network_input
from bitsweep.measuring.resident import peak_mb, resident_mb
from bitsweep.measuring.timing import batch_of, time_artifacts
from bitsweep.runtime.environment import current_cpu, describe, physical_cores, release_of
from bitsweep.runtime.machine import private_folder
from bitsweep.runtime.progress import STEP

#: Below this share of its frequency before, a processor was slowed down while it measured.
_THROTTLED = 0.9
#: Seconds between two signs of life.
_BEAT_S = 10
Infer = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


def main(arguments: list[str]) -> int:
    """Exit code: 0, or 1 where something is missing."""
    if arguments[0] == "--describe":
        versions = {name: release_of(name) for name in arguments[1:]}
        print(json.dumps({**describe(), "physical_cores": physical_cores(), "versions": versions}))
        return 0
    if arguments[0] == "--memory":
        print(json.dumps(_peak(Path(arguments[1]))))
        return 0
    folder = Path(arguments[0])
    request = json.loads((folder / "request.json").read_text())
    if other_machine := _differs(request["machine"]):
        print(other_machine, file=sys.stderr)
        return 1
    wanted = request["requirements"]
    found = {name: release_of(name) for name in wanted}
    if other := [name for name, version in wanted.items() if found[name] != version]:
        told = [f"lacks {name}" if found[name] == "absent" else f"has {name} {found[name]}" for name in other]
        needed = " ".join(f"{name}=={version}" for name, version in wanted.items())
        print(f"{', '.join(told)}; what is measured needs: pip install {needed}", file=sys.stderr)
        return 1
    threading.Thread(target=_tell_a_reader_that_it_runs, daemon=True).start()
    with _alone():
        measure(folder)
    return 0


def _differs(planned: dict[str, Any]) -> str:
    """In what this machine is not the one that was planned for; empty where it is, or has more cores."""
    cpu, cores = current_cpu(), physical_cores()
    is_the_same = (cpu.model, cpu.architecture, cpu.isa) == (planned["model"], planned["architecture"], planned["isa"])
    if is_the_same and cores >= planned["cores"]:
        return ""
    planned_for = "{model} ({architecture}, {isa}), cores: {cores}".format(**planned)
    is_now = f"{cpu.model} ({cpu.architecture}, {cpu.isa}), cores: {cores}"
    return f"is {is_now}, but its YAML says {planned_for}: describe it again with bitsweep probe"


def measure(folder: Path) -> None:
    """Measure accuracy, latency and memory; the logits themselves are judged elsewhere."""
    request = json.loads((folder / "request.json").read_text())
    protocol: Any = SimpleNamespace(**request["protocol"])
    form: dict[str, Any] = request["form"]
    results = folder / "results"
    images = {name: np.load(folder / file, mmap_mode="r") for name, file in request["images"].items()}
    load = partial(_load, folder, request)
    infer = load("artifact")
    done = 0
    for name, stored in images.items():
        logits = []
        for start in range(0, len(stored), protocol.eval_batch):
            part = np.asarray(stored[start : start + protocol.eval_batch])
            logits.append(infer(network_input(part, **form)))
            done += len(part)
            print(f"{STEP}{done}", flush=True)
        np.save(results / f"{name}.npy", np.concatenate(logits).astype(np.float32))
    if "probe" in request["artifacts"]:
        np.save(results / "probe.npy", _load(folder, request | {"threads": 1}, "probe")(np.load(folder / "probe.npy")))
    examples = network_input(batch_of(np.asarray(images["test"]), max(protocol.batch_sizes)), **form)
    np.save(folder / "examples.npy", examples)
    timed = ["artifact", "twin"] if "twin" in request["artifacts"] else ["artifact"]
    before = _state()
    notes = time_artifacts(
        [partial(load, name) for name in timed], examples, protocol, threads=request["threads"], folder=results
    )
    notes["machine"] = {"before": before, "after": (after := _state())}
    mhz, mhz_after = before.get("mhz", 0), after.get("mhz", 0)
    notes["throttled"] = bool(mhz and mhz_after and mhz_after < _THROTTLED * mhz)
    if protocol.memory:
        command = [sys.executable, "-B", "-m", "bitsweep.measuring.on_device", "--memory", str(folder)]
        printed = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
        notes["peak_rss_mb"] = json.loads(printed.splitlines()[-1])
    (results / "notes.json").write_text(json.dumps(notes))


def _load(folder: Path, request: dict[str, Any], which: str) -> Infer:
    """An artifact, ready to run."""
    engine = importlib.import_module("engine")
    loaded: Infer = engine.load(folder / request["artifacts"][which], request)
    return loaded


def _peak(folder: Path) -> float:
    """By how many MB the resident set of this process grows at most while it loads an artifact and runs it once."""
    request = json.loads((folder / "request.json").read_text())
    images = batch_of(np.load(folder / "examples.npy"), request["protocol"]["batch_sizes"][0])
    before = resident_mb()
    _load(folder, request, "artifact")(images)
    return peak_mb() - before


def _state() -> dict[str, float]:
    """Temperature and frequency of the processor, where the system tells them."""
    found: dict[str, float] = {}
    with contextlib.suppress(Exception):  # as many ways to fail as there are systems
        found["mhz"] = float(psutil.cpu_freq().current)
    with contextlib.suppress(Exception):
        found["celsius"] = max(each.current for sensors in psutil.sensors_temperatures().values() for each in sensors)
    return found


def _tell_a_reader_that_it_runs() -> None:
    """Print an empty line now and then, and end this program once nobody can read it.

    Nothing else tells the other side that this one hangs, and this one that the connection is gone: else it would go on
    to measure, and the next measurement would have to wait for it.
    """
    import select

    watched = select.poll()
    watched.register(sys.stdout.fileno(), 0)  # of what ends it one is always told
    while not watched.poll(1000 * _BEAT_S):
        with contextlib.suppress(OSError):  # there is no reader any more, as the next poll tells
            os.write(sys.stdout.fileno(), b"\n")
    os._exit(1)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One measurement at a time on this machine; one that was stopped for good is ended by the next."""
    import fcntl

    with (private_folder() / "device.lock").open("a+") as lock:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            lock.seek(0)
            _end_if_stopped(lock.read())
            time.sleep(1)
        lock.truncate(0)
        print(os.getpid(), file=lock, flush=True)
        yield


def _end_if_stopped(holder: str) -> None:
    with contextlib.suppress(ValueError, psutil.Error):
        process = psutil.Process(int(holder))
        if process.status() == psutil.STATUS_STOPPED and "bitsweep.measuring.on_device" in process.cmdline():
            process.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
