"""How fast the cores are: what slows them without a trace is seen, and the blocks measured meanwhile do not count."""

import dataclasses
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from bitsweep.config.protocol import MeasurementProtocol
from bitsweep.measuring.pace import Moment, Pace, drift, steady, typical_effect
from bitsweep.measuring.timing import until_quiet
from bitsweep.runtime.machine import VARIABLE, private_folder

IMAGES = np.ones((1, 3, 4, 4), np.float32)
PROTOCOL = MeasurementProtocol(
    name="quick", threads=1, warmup_s=0.01, blocks=6, block_s=0.01, repeats=0, max_foreign_share=1e9, max_spread=1e9
)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))


class Machine:
    """Cores that are twice as slow in some turns, and an artifact that takes as long as they let it."""

    def __init__(self, slow_turns: set[int], *, slow_s: float = 0.004) -> None:
        self.slow_turns, self.slow_s, self.asked = slow_turns, slow_s, 0

    def pace(self) -> Moment:
        self.asked += 1
        return Moment(arithmetic=self.slowdown(self.asked - 1), distance=1, kernel_ms=1)

    def slowdown(self, turn: int) -> float:
        return 2.0 if turn in self.slow_turns else 1.0

    def infer(self, images: np.ndarray) -> np.ndarray:
        time.sleep(0.002 if self.slowdown(self.asked - 1) == 1 else self.slow_s)
        return images


def test_slow_blocks_do_not_count() -> None:
    machine = Machine({1, 4}, slow_s=0.1)  # far above a quick one, which on a busy machine is longer than it asks for
    (blocks,), noise = until_quiet([machine.infer], IMAGES, PROTOCOL, machine.pace, computes=False)
    # A slow moment belongs to the turn before it and to the one after it. Of the first six turns two are steady.
    assert machine.asked == 1 + 7
    assert len(blocks) == 3
    assert max(float(np.median(block)) for block in blocks) < 100
    assert noise["disturbed_share"] == pytest.approx(4 / 7)
    assert not noise["noisy"]
    assert noise["slowdown"] == 1


def test_where_the_cores_stay_slow_all_blocks_count_and_it_is_noisy() -> None:
    machine = Machine(set(range(1, 100)))
    (blocks,), noise = until_quiet([machine.infer], IMAGES, PROTOCOL, machine.pace, computes=False)
    assert len(blocks) == 24
    assert noise["disturbed_share"] == 1
    assert noise["noisy"]
    assert noise["slowdown"] == 2


def test_a_neighbour_that_stays_is_waited_for_once_and_not_again_in_every_repeat() -> None:
    patient = dataclasses.replace(PROTOCOL, repeats=2)
    machine = Machine(set(range(1, 1000)))
    _, noise = until_quiet([machine.infer], IMAGES, patient, machine.pace, computes=False)
    assert noise["attempts"] == 1
    # One that goes away after three quarters of the time leaves enough.
    machine = Machine(set(range(1, 21)))
    (blocks,), noise = until_quiet([machine.infer], IMAGES, patient, machine.pace, computes=False)
    assert len(blocks) == 3
    assert not noise["noisy"]
    assert noise["attempts"] == 1


def test_turns_and_their_drift() -> None:
    turns = [
        [Moment(arithmetic=1, distance=slowdown, kernel_ms=ms)] * 2
        for slowdown, ms in ((1, 1), (1.2, 1), (1.3, 2), (1, 1.5))
    ]
    assert steady(turns, 0.25) == [0, 1, 3]
    assert drift(turns) == pytest.approx(0.75)
    assert typical_effect(turns) == pytest.approx(1.05)
    assert typical_effect([[Moment(arithmetic=1.2, distance=distance, kernel_ms=1)] for distance in (1, 2, 3)]) == 1.5
    assert typical_effect([[Moment(arithmetic=1, distance=math.inf, kernel_ms=1)]]) == 10
    assert drift([[Moment(arithmetic=1, distance=1, kernel_ms=5)]]) == 0


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_a_core_that_does_not_answer_is_slow_without_bound() -> None:
    others = set(psutil.Process().children())
    with Pace() as pace:
        found = [pace() for _ in range(20)]
        (partner,) = set(psutil.Process().children()) - others
        partner.suspend()
        assert pace().slowdown == math.inf
        partner.resume()
        assert min(pace().slowdown for _ in range(20)) < math.inf
        partner.kill()
        partner.wait()
        assert pace().slowdown == math.inf
    assert min(moment.slowdown for moment in found) >= 1
    assert all(0 < moment.kernel_ms < 100 for moment in found)
    assert not partner.is_running()


def test_the_best_is_known_for_a_day_and_damage_is_forgotten() -> None:
    file = private_folder() / "pace.json"
    with Pace() as pace:
        for _ in range(20):
            pace()
    (cores, kept), *_ = json.loads(file.read_text()).items()
    faster = {name: value / 10 for name, value in kept["times"].items() if name != "sorting_ms"}
    for since, seen in ((kept["since"], True), (kept["since"] - 90_000, False), (kept["since"] + 900, False)):
        file.write_text(json.dumps({"other cores": 5, cores: {"since": since, "times": faster}}))
        with Pace() as pace:
            # A core that other programs keep from answering for once is infinitely slow.
            assert (min(pace().slowdown for _ in range(20)) > 5) is seen, since
        assert json.loads(file.read_text()).keys() == {"other cores", cores}
    for damaged in ("", "[]", "{}", '{"x": 3}', json.dumps({cores: {"since": "x"}}), json.dumps({cores: None})):
        file.write_text(damaged)
        with Pace() as pace:
            assert pace().slowdown >= 1
        assert json.loads(file.read_text())[cores]["times"]
