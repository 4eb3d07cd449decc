"""Latencies while others use the cores: seen, said, tried again, and no ground for a verdict."""

import contextlib
import dataclasses
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import psutil
import pytest

from bitsweep import stats
from bitsweep.config.protocol import MeasurementProtocol
from bitsweep.measuring.others import Others
from bitsweep.measuring.pace import Moment, Pace
from bitsweep.measuring.timing import FEWEST_RUNS, block, until_quiet
from tests.processes import require_once

IMAGES = np.ones((1, 3, 4, 4), np.float32)
QUICK = MeasurementProtocol(name="quick", threads=1, warmup_s=0.01, blocks=6, block_s=0.02, repeats=0)
EVEN = functools.partial(Moment, arithmetic=1, distance=1, kernel_ms=1)


def computing(size: int) -> Callable[[np.ndarray], np.ndarray]:
    values = np.linspace(0, 1, size)
    return lambda images: np.sin(values)


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Processes that compute all the time on the one CPU that this process may use."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for each in started:
            each.kill()
            each.wait()
        os.sched_setaffinity(0, allowed)


@pytest.mark.slow
@pytest.mark.parametrize("repeats", [0, 2])
def test_crowded_cores_are_seen_and_tried_again(repeats: int) -> None:
    patient = dataclasses.replace(QUICK, repeats=repeats)
    with neighbours(4):
        _, noise = until_quiet([computing(20_000), computing(10_000)], IMAGES, patient, EVEN, computes=True)
    assert noise["crowded"]
    assert noise["noisy"]
    assert noise["attempts"] == 1 + repeats
    assert noise["foreign_share"] > 0.5
    assert noise["computing_share"] < 0.5 or noise["preemptions_per_s"] > 10


def test_a_block_that_takes_too_long_ends() -> None:
    """Two threads of which one waits for its core take a hundred times as long: the time of a protocol must hold."""

    def slow(images: np.ndarray) -> np.ndarray:
        time.sleep(0.01)
        return images

    assert FEWEST_RUNS <= len(block(slow, IMAGES, 500, longest_s=0.1)) < 50
    assert len(block(slow, IMAGES, 500, longest_s=0)) == FEWEST_RUNS
    assert len(block(slow, IMAGES, 5)) == 5


def test_one_s_own_work_is_no_crowd() -> None:

    def is_no_crowd() -> bool:
        with neighbours(0):
            _, noise = until_quiet([computing(20_000), computing(10_000)], IMAGES, QUICK, EVEN, computes=True)
        return not noise["crowded"] and noise["attempts"] == 1

    require_once(is_no_crowd)


def test_asking_the_cores_between_blocks_is_no_crowd() -> None:
    """It moves threads from core to core, which the system counts as taking cores away."""

    def is_no_crowd() -> bool:
        with Pace() as pace:
            _, noise = until_quiet([computing(20_000), computing(10_000)], IMAGES, QUICK, pace, computes=True)
        return noise["preemptions_per_s"] < 20

    require_once(is_no_crowd)


def test_the_time_that_a_process_computes() -> None:
    others = Others()
    with others.watched():
        end = psutil.Process().cpu_times().user + 0.2
        while psutil.Process().cpu_times().user < end:
            pass
    assert 0 < others.figures["computing_share"] <= 1.1


def test_what_crowded_samples_leave_open() -> None:
    """Samples of one scheduler's time slices are even: resampled they would give a narrow interval."""
    rng = np.random.default_rng(0)
    fp32 = [np.full(5, 72.0) + rng.normal(0, 0.01, 5) for _ in range(6)]
    int8 = [np.full(5, 108.0) + rng.normal(0, 0.01, 5) for _ in range(6)]
    resampled = stats.paired_speedup(fp32, int8, confidence=0.95, seed=0)
    assert (resampled.verdict, resampled.high - resampled.low < 0.04) == ("slower", True)
    undecided = stats.undecided_speedup(fp32, int8)
    assert undecided.verdict == "not distinguishable"
    assert undecided.low < 0.67
    assert undecided.high == 1.0
    assert undecided.ratio == resampled.ratio


def test_what_others_take_in_many_short_times_is_a_sum_without_bias() -> None:
    """The system counts in steps of 10 ms: where each short time counted for 0 at least, the sum would be too large."""

    def is_smaller() -> bool:
        together, alone = Others(), [Others() for _ in range(40)]
        for each in alone:
            with together.watched(), each.watched():
                end = time.perf_counter() + 0.013
                while time.perf_counter() < end:
                    pass
        return together.share < 0.5 * np.mean([each.share for each in alone])

    require_once(is_smaller)
