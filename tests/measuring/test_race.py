"""Artifacts race in turn, each in a process of its own."""

import itertools
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bitsweep.config.backend import InferenceFn
from bitsweep.config.configurable import configurable
from bitsweep.errors import CellFailed
from bitsweep.measuring.race import Entrant, prepare, race, times
from bitsweep.runtime import child
from tests.measuring.test_measuring import EXAMPLES, Sleeper, artifact, protocol

#: Processes whose threads sleep compute for no part of the time, as crowded ones do.
PATIENT = protocol(blocks=6, block_s=0.01)


@configurable
class Diary(Sleeper):
    """An engine that writes down when it ran."""

    def load(self, folder: Path, *, threads: int) -> InferenceFn:
        run = super().load(folder, threads=threads)

        def noted(images: np.ndarray) -> np.ndarray:
            start = time.monotonic()
            result = run(images)
            with (folder / "ran").open("a") as file:
                file.write(f"{start} {time.monotonic()}\n")
            return result

        return noted


@configurable
class Mortal(Sleeper):
    """An engine whose process is killed while it runs."""

    def load(self, folder: Path, *, threads: int) -> InferenceFn:
        return lambda images: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[return-value]


def held(tmp_path: Path, *entrants: Entrant) -> None:
    lanes = tmp_path / "lanes"
    lanes.mkdir()
    prepare(lanes, len(entrants))
    child.call(
        race, {"entrants": entrants, "protocol": PATIENT, "lanes": lanes}, folder=tmp_path, log=tmp_path / "log.txt",
        processes=len(entrants), timeout_s=300,
    )  # fmt: skip


def entrant(tmp_path: Path, name: str, ms: float, backend: Sleeper) -> Entrant:
    np.save(tmp_path / "examples.npy", EXAMPLES)
    return Entrant(artifact=artifact(tmp_path, name, ms=ms), backend=backend, examples=tmp_path / "examples.npy")


@pytest.mark.slow
def test_nobody_runs_while_another_does_and_the_quickest_wins(tmp_path: Path) -> None:
    milliseconds = {"slow": 15.0, "quick": 5.0, "middle": 10.0}
    held(tmp_path, *(entrant(tmp_path, name, ms, Diary(name="diary")) for name, ms in milliseconds.items()))
    runs = sorted(
        (*map(float, line.split()), name)
        for name in milliseconds
        for line in (tmp_path / name / "ran").read_text().splitlines()
    )
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(runs))
    turns = [name for i, (*_, name) in enumerate(runs) if not i or runs[i - 1][-1] != name]
    assert turns == (["slow", "quick", "middle", "quick"] * 4)[:15]  # each end has two blocks in a row
    slow, quick, middle = times(tmp_path, confidence=0.95)
    assert quick.times == quick.times_low == quick.times_high == 1
    for found, ms in zip((slow, quick, middle), milliseconds.values(), strict=True):
        assert found.low_ms <= found.p50_ms <= found.high_ms
        assert ms <= found.p50_ms
        assert found.times_low <= found.times <= found.times_high
    assert quick.p50_ms < middle.p50_ms < slow.p50_ms


@pytest.mark.parametrize(("steady", "slowdown", "decided"), [(range(20), 1.5, True), ([], 1.5, False), ([], 1.1, True)])
def test_slow_cores_decide_only_what_exceeds_their_slowdown(
    steady: Sequence[int], slowdown: float, *, decided: bool, tmp_path: Path
) -> None:
    heard = {"noisy": not steady, "crowded": False, "steady": [*steady], "slowdown": slowdown, "from_memory": 0.0}
    for rank, ms in enumerate((1.0, 1.37)):
        np.savez(tmp_path / f"{rank}.npz", **{str(turn): np.full(5, ms) for turn in range(20)})
        (tmp_path / f"{rank}.json").write_text(json.dumps(heard))
    _, slower = times(tmp_path, confidence=0.95)
    assert slower.times == pytest.approx(1.37)
    assert (slower.times_low > 1) == decided


@pytest.mark.slow
def test_one_that_is_killed_ends_the_race_for_all(tmp_path: Path) -> None:
    with pytest.raises(CellFailed, match="race was killed by SIGKILL"):
        held(tmp_path, entrant(tmp_path, "a", 1.0, Sleeper()), entrant(tmp_path, "b", 1.0, Mortal(name="mortal")))
