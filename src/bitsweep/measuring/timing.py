"""Times the runs of an artifact, and sees how quiet the machine was meanwhile.

It needs numpy and psutil alone, so that a device without this project can do the same.
"""

import gc
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from bitsweep import stats
from bitsweep.errors import first_line, ran_out_of_memory
from bitsweep.measuring.others import Others
from bitsweep.measuring.pace import Moment, Pace, drift, steady, typical_effect
from bitsweep.results import LATENCY_SAMPLES, Array
from bitsweep.runtime.environment import last_cache_bytes, usable_cpus

if TYPE_CHECKING:
    from bitsweep.config.backend import InferenceFn
    from bitsweep.config.protocol import MeasurementProtocol

#: Pause before another attempt, where others use the cores.
PAUSE_S = 1.0
#: Turns at most, in multiples of the protocol's blocks, where fewer than half of so many were steady.
MOST_TURNS = 4
#: Steady turns at least, as a share of the protocol's blocks: with fewer, a measurement is noisy.
FEWEST_STEADY = 0.25
#: Runs of a block, at least.
FEWEST_RUNS = 3
#: A block that has taken so many times the protocol's block_s ends.
LONGEST_BLOCK = 4
T = TypeVar("T")


def time_artifacts(
    loads: "Sequence[Callable[[], InferenceFn]]",
    examples: Array,
    protocol: "MeasurementProtocol",
    *,
    threads: int,
    folder: Path,
    device_ms: Callable[[Array], Array] | None = None,
) -> dict[str, Any]:
    """Time an artifact against another one: blocks A B B A, raw samples kept in ``LATENCY_SAMPLES`` of a folder.

    Args:
        loads: load the one, and the other if there is one.
        examples: float32 images [N, C, H, W]; repeated where a batch needs more.
        device_ms: of engines on a GPU, how long that takes itself for runs of a batch.

    Returns:
        Times of loading and of the first run in ms, the size of the last cache, and for each batch size how quiet the
        machine was, or that memory ran out.
    """
    pin(threads)
    infer, load_ms = timed_ms(loads[0])
    first = batch_of(examples, protocol.batch_sizes[0])
    _, first_run_ms = timed_ms(lambda: infer(first))
    artifacts = [infer, *(load() for load in loads[1:])]
    samples: dict[str, Array] = {}
    batches: dict[str, dict[str, Any]] = {}
    with Pace() as pace:
        for size in protocol.batch_sizes:
            images = batch_of(examples, size)
            try:
                blocks, batches[str(size)] = until_quiet(artifacts, images, protocol, pace, computes=device_ms is None)
                if device_ms:
                    samples[f"device_b{size}_ms"] = device_ms(images)
            except Exception as error:
                if size == protocol.batch_sizes[0] or not ran_out_of_memory(error):
                    raise
                batches[str(size)] = {"out_of_memory": first_line(error)}
                continue
            for which, its_blocks in zip(("candidate", "fp32"), blocks, strict=False):
                samples[f"{which}_b{size}_ms"] = np.concatenate(its_blocks)
                samples[f"{which}_b{size}_block_lengths"] = np.array([len(block) for block in its_blocks])
    np.savez_compressed(folder / LATENCY_SAMPLES, allow_pickle=False, **samples)
    return {
        "load_ms": load_ms, "first_run_ms": first_run_ms, "threads": threads, "batches": batches,
        "last_cache_bytes": last_cache_bytes(),
    }  # fmt: skip


def pin(threads: int) -> None:
    """Let this process run on as many CPUs as the engine has threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, usable_cpus()[:threads])


def batch_of(examples: Array, size: int) -> Array:
    """So many images, repeated where there are fewer."""
    return np.ascontiguousarray(np.resize(examples, (size, *examples.shape[1:])))


def timed_ms(action: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter_ns()
    result = action()
    return result, (time.perf_counter_ns() - start) / 1e6


def until_quiet(
    artifacts: "list[InferenceFn]",
    images: Array,
    protocol: "MeasurementProtocol",
    pace: Callable[[], Moment],
    *,
    computes: bool,
) -> tuple[list[list[Array]], dict[str, Any]]:
    """Measure until the machine was quiet, or the repeats or all turns are used up; the quietest attempt counts.

    Of an attempt, the blocks of disturbed turns are left out, unless too few would be left.

    Args:
        pace: how the cores are now.

    Returns:
        Blocks of latencies in ms for each infer, and what is known of the noise.
    """
    best: tuple[float, list[list[Array]], dict[str, Any]] | None = None
    attempts, turns_left = 1 + protocol.repeats, MOST_TURNS * protocol.blocks
    for attempt in range(1, attempts + 1):
        others = Others()
        blocks, turns = interleaved_blocks(artifacts, images, protocol, pace, others)
        counted = steady(turns, protocol.max_slowdown)
        steady_turns = len(counted)
        turns_left -= len(turns)
        slowdown = 1.0
        if too_few(steady_turns, protocol.blocks):
            counted = list(range(len(turns)))
            slowdown = typical_effect(turns)
        blocks = [[own[turn] for turn in counted] for own in blocks]
        change = drift([turns[turn] for turn in counted])
        spread = stats.relative_iqr(np.concatenate(blocks[0]))
        badness = badness_of(
            protocol, drift=change, spread=spread, foreign_share=others.share, steady_turns=steady_turns
        )
        crowded = others.crowd(protocol, computes=computes)
        noise = {
            "noisy": badness > 1,
            "crowded": crowded,
            "drift": change,
            "spread": spread,
            "disturbed_share": 1 - steady_turns / len(turns),
            "slowdown": slowdown,
            **others.figures,
        }
        if best is None or (noise["crowded"], badness) < (best[2]["crowded"], best[0]):
            best = badness, blocks, noise
        best[2]["attempts"] = attempt
        if badness <= 1 or (turns_left <= 0 and not crowded):
            break
        if crowded and attempt < attempts:
            time.sleep(PAUSE_S)
    assert best is not None
    return best[1], best[2]


def too_few(steady_turns: int, blocks: int) -> bool:
    """Whether so few turns were steady, of a protocol with so many blocks, that a measurement is noisy."""
    return steady_turns < FEWEST_STEADY * blocks


def badness_of(
    protocol: "MeasurementProtocol", *, drift: float, spread: float, foreign_share: float, steady_turns: int
) -> float:
    """How far a measurement is from quiet: above 1 it is noisy."""
    return max(
        abs(drift) / protocol.max_drift,
        spread / protocol.max_spread,
        foreign_share / protocol.max_foreign_share,
        FEWEST_STEADY * protocol.blocks / max(1, steady_turns),
    )


def interleaved_blocks(
    artifacts: "list[InferenceFn]",
    images: Array,
    protocol: "MeasurementProtocol",
    pace: Callable[[], Moment],
    others: Others,
) -> tuple[list[list[Array]], list[list[Moment]]]:
    """Latencies in ms of each infer, in blocks that alternate A B B A, so that a drifting machine slows all alike.

    It goes on until half as many turns were steady as the protocol has blocks, but not beyond ``MOST_TURNS`` times
    the blocks.

    Args:
        pace: how the cores are now; it is asked between all blocks.
        others: watched during all blocks.

    Returns:
        Blocks of each infer, and how the cores were before, between and after those of each turn.
    """
    runs = [runs_a_block(infer, images, protocol) for infer in artifacts]
    longest_s = LONGEST_BLOCK * protocol.block_s
    blocks: list[list[Array]] = [[] for _ in artifacts]
    turns: list[list[Moment]] = []
    gc.disable()
    try:
        now = pace()
        for turn in range(MOST_TURNS * protocol.blocks):
            order = range(len(artifacts)) if turn % 2 == 0 else reversed(range(len(artifacts)))
            seen = [now]
            for index in order:
                with others.watched():
                    timed = block(artifacts[index], images, runs[index], longest_s=longest_s)
                blocks[index].append(timed)
                seen.append(now := pace())
            turns.append(seen)
            if len(turns) >= protocol.blocks and len(steady(turns, protocol.max_slowdown)) >= protocol.blocks / 2:
                break
    finally:
        gc.enable()
    return blocks, turns


def runs_a_block(infer: "InferenceFn", images: Array, protocol: "MeasurementProtocol") -> int:
    """Warm up, and return how many runs fill a block."""
    end = time.perf_counter() + protocol.warmup_s
    durations = [timed_ms(lambda: infer(images))[1] for _ in range(3)]
    while time.perf_counter() < end:
        durations.append(timed_ms(lambda: infer(images))[1])
    return max(FEWEST_RUNS, int(np.ceil(1000 * protocol.block_s / float(np.median(durations)))))


def block(infer: "InferenceFn", images: Array, runs: int, *, longest_s: float = math.inf) -> Array:
    """Latencies in ms of so many runs; of fewer, but of ``FEWEST_RUNS``, if they take longer: others hold the cores."""
    # The first runs of a block meet the other infer's caches and still spinning threads: they are not counted.
    infer(images)
    infer(images)
    samples = np.empty(runs)
    begin = time.perf_counter_ns()
    for index in range(runs):
        start = time.perf_counter_ns()
        if index >= FEWEST_RUNS and start - begin > 1e9 * longest_s:
            return samples[:index]
        infer(images)
        samples[index] = (time.perf_counter_ns() - start) / 1e6
    return samples
