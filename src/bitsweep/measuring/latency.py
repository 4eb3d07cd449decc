"""Latency against the same engine's fp32, and how quiet the machine was meanwhile."""

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from bitsweep import stats
from bitsweep.config.backend import InferenceFn
from bitsweep.config.protocol import MeasurementProtocol
from bitsweep.errors import first_line, ran_out_of_memory
from bitsweep.measuring.causes import Profile, why_not_faster
from bitsweep.measuring.passes import Subject, write_pass
from bitsweep.results import Array
from bitsweep.runtime import gpu

#: Runs of a quick look at a latency.
_QUICK_RUNS = 9
#: Flag of latencies that others decide: threads wait for the time slices of other processes.
CROWDED = "others use the cores"
#: Attempts again, and the pause before each, where others use the cores.
_CROWDED_REPEATS, _PAUSE_S = 2, 1.0
#: Share of the time that an engine's threads compute where nothing keeps them from it, at least.
_LEAST_COMPUTING = 0.5
#: How often in a second the system takes a core away from a process that has it to itself, at most.
_MOST_PREEMPTIONS = 10.0
#: Runs whose median is the time that a GPU takes.
_DEVICE_RUNS = 50
T = TypeVar("T")


def measure_latency(subject: Subject, *, examples: Array, folder: Path) -> None:
    """Time the artifact against the same engine's fp32 artifact: blocks A B B A, raw samples kept.

    Args:
        examples: float32 images [N, 3, H, W]; repeated where a batch needs more.
    """
    protocol = subject.protocol
    pin(subject.threads)
    infer, load_ms = _timed_ms(lambda: subject.backend.load(subject.artifact, threads=subject.threads))
    first = batch_of(examples, protocol.batch_sizes[0])
    _, first_run_ms = _timed_ms(lambda: infer(first))
    artifacts = [infer]
    if subject.twin != subject.artifact:
        artifacts.append(subject.backend.load(subject.twin, threads=subject.threads))

    metrics: dict[str, float] = {"load_ms": load_ms, "first_run_ms": first_run_ms}
    flags: list[str] = []
    details: dict[str, Any] = {"threads": subject.threads, "batches": {}}
    samples: dict[str, Array] = {}
    for size in protocol.batch_sizes:
        suffix = "" if size == protocol.batch_sizes[0] else f"_b{size}"
        try:
            blocks, noise = _until_quiet(
                artifacts, batch_of(examples, size), protocol, computes=not subject.backend.on_gpu
            )
            if subject.backend.on_gpu:
                samples[f"device_b{size}_ms"] = _device_ms(subject, batch_of(examples, size))
                metrics[f"device_p50_ms{suffix}"] = float(np.median(samples[f"device_b{size}_ms"]))
        except Exception as error:
            if size == protocol.batch_sizes[0] or not ran_out_of_memory(error):
                raise
            details["batches"][str(size)] = {"out_of_memory": first_line(error)}
            flags.append(f"no memory for batch {size}")
            continue
        own = np.concatenate(blocks[0])
        for percentile in (50, 90, 99):
            value = stats.percentile_if_supported(own, percentile / 100)
            if value is not None:
                metrics[f"latency_p{percentile}_ms{suffix}"] = value
        low, high = stats.median_interval(blocks[0], confidence=protocol.confidence, seed=0)
        metrics |= {f"latency_p50_ms_low{suffix}": low, f"latency_p50_ms_high{suffix}": high}
        metrics[f"throughput_ips{suffix}"] = 1000 * size / float(np.median(own))
        if len(blocks) == 2:
            if noise["crowded"]:
                gain = stats.undecided_speedup(blocks[1], blocks[0])
            else:
                gain = stats.paired_speedup(blocks[1], blocks[0], confidence=protocol.confidence, seed=0)
            metrics |= {
                f"speedup{suffix}": gain.ratio,
                f"speedup_low{suffix}": gain.low,
                f"speedup_high{suffix}": gain.high,
            }
            noise["verdict"] = gain.verdict
        found = [flag for flag, holds in (("noisy", noise["noisy"]), (CROWDED, noise["crowded"])) if holds]
        flags += [flag for flag in found if flag not in flags]
        details["batches"][str(size)] = noise
        for which, its_blocks in zip(("candidate", "fp32"), blocks, strict=False):
            samples[f"{which}_b{size}_ms"] = np.concatenate(its_blocks)
            samples[f"{which}_b{size}_block_lengths"] = np.array([len(block) for block in its_blocks])
    np.savez_compressed(folder / "latency_samples.npz", allow_pickle=False, **samples)
    details["verdict"] = details["batches"][str(protocol.batch_sizes[0])].get("verdict", "")
    findings = []
    if CROWDED in flags:
        findings = [
            "other processes use the cores, and its threads wait for them: no time is its own; measure it again on a "
            "quiet machine (remeasure=noisy)"
        ]
    elif details["verdict"] not in ("", "faster"):
        findings = _why_not_faster(
            subject, first, metrics["latency_p50_ms"], metrics["latency_p50_ms"] * metrics["speedup"]
        )
    write_pass(folder, "measure_latency", metrics, flags, details, findings=findings)


def _why_not_faster(subject: Subject, images: Array, own_ms: float, fp32_ms: float) -> list[str]:
    """Causes that the profiles of an artifact and of the same engine's fp32 show."""
    own, fp32 = (
        subject.backend.profile(folder, images, threads=subject.threads) for folder in (subject.artifact, subject.twin)
    )
    return why_not_faster(
        Profile(latency=own_ms, kernels=own),
        Profile(latency=fp32_ms, kernels=fp32),
        subject.scheme,
        threads=subject.threads,
        alone_ms=_settled_ms(subject.backend.load(subject.artifact, threads=1), images),
    )


def pin(threads: int) -> None:
    """Let this process run on as many CPUs as the engine has threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, _cpus()[:threads])


def batch_of(examples: Array, size: int) -> Array:
    """So many images, repeated where there are fewer."""
    return np.ascontiguousarray(np.resize(examples, (size, *examples.shape[1:])))


def _timed_ms(action: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter_ns()
    result = action()
    return result, (time.perf_counter_ns() - start) / 1e6


def _settled_ms(infer: InferenceFn, images: Array) -> float:
    """Median latency after as many runs again."""
    samples = [_timed_ms(lambda: infer(images))[1] for _ in range(2 * _QUICK_RUNS)]
    return float(np.median(samples[_QUICK_RUNS:]))


def _device_ms(subject: Subject, images: Array) -> Array:
    """How long a GPU took for runs of a batch in its memory, after as many that warmed it up."""
    loaded = subject.backend.load_on_device(subject.artifact, images, threads=subject.threads)
    return np.array([gpu.elapsed_ms(loaded.queue, loaded.stream) for _ in range(2 * _DEVICE_RUNS)])[_DEVICE_RUNS:]


def _until_quiet(
    artifacts: list[InferenceFn], images: Array, protocol: MeasurementProtocol, *, computes: bool
) -> tuple[list[list[Array]], dict[str, Any]]:
    """Measure until the machine was quiet, or the repeats are used up; the quietest attempt counts.

    Returns:
        Blocks of latencies in ms for each infer, and what is known of the noise.
    """
    best: tuple[float, list[list[Array]], dict[str, Any]] | None = None
    attempts, attempt = 1 + protocol.repeats, 0
    while attempt < attempts:
        attempt += 1
        before = reference_ms()
        with foreign_share() as foreign, own_time() as own:
            blocks = interleaved_blocks(artifacts, images, protocol)
        drift = stats.drift(before, reference_ms())
        spread = stats.relative_iqr(np.concatenate(blocks[0]))
        badness = max(
            abs(drift) / protocol.max_drift, spread / protocol.max_spread, foreign() / protocol.max_foreign_share
        )
        computing, preemptions = own()
        crowded = foreign() > protocol.max_foreign_share and kept_waiting(computing, preemptions, computes=computes)
        noise = {
            "noisy": badness > 1,
            "crowded": crowded,
            "drift": drift,
            "spread": spread,
            "foreign_share": foreign(),
            "computing_share": computing,
            "preemptions_per_s": preemptions,
        }
        if best is None or (noise["crowded"], badness) < (best[2]["crowded"], best[0]):
            best = badness, blocks, noise
        best[2]["attempts"] = attempt
        if badness <= 1:
            break
        if noise["crowded"]:
            attempts = max(attempts, 1 + _CROWDED_REPEATS)
            time.sleep(_PAUSE_S if attempt < attempts else 0)
    assert best is not None
    return best[1], best[2]


def kept_waiting(computing: float, preemptions: float, *, computes: bool) -> bool:
    """Whether the threads of a process wait for cores that others use.

    Args:
        computing: share of the time that it computed.
        preemptions: how often in a second others took a core away.
        computes: whether it is its own threads that compute, and not a GPU.
    """
    return preemptions > _MOST_PREEMPTIONS or (computes and computing < _LEAST_COMPUTING)


@contextlib.contextmanager
def own_time() -> Iterator[Callable[[], tuple[float, float]]]:
    """Share of the time that this process computed, and how often in a second others took its cores away."""
    import resource  # which not every system has that can plan

    def now() -> tuple[float, float, int]:
        return time.monotonic(), time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw

    start = now()
    found = (0.0, 0.0)
    yield lambda: found
    wall, computed, preempted = (after - before for after, before in zip(now(), start, strict=True))
    found = computed / wall, preempted / wall


def interleaved_blocks(artifacts: list[InferenceFn], images: Array, protocol: MeasurementProtocol) -> list[list[Array]]:
    """Latencies in ms of each infer, in blocks that alternate A B B A, so that a drifting machine slows all alike."""
    runs = [runs_a_block(infer, images, protocol) for infer in artifacts]
    blocks: list[list[Array]] = [[] for _ in artifacts]
    gc.disable()
    try:
        for turn in range(protocol.blocks):
            order = range(len(artifacts)) if turn % 2 == 0 else reversed(range(len(artifacts)))
            for index in order:
                blocks[index].append(block(artifacts[index], images, runs[index]))
    finally:
        gc.enable()
    return blocks


def runs_a_block(infer: InferenceFn, images: Array, protocol: MeasurementProtocol) -> int:
    """Warm up, and return how many runs fill a block."""
    end = time.perf_counter() + protocol.warmup_s
    durations = [_timed_ms(lambda: infer(images))[1] for _ in range(3)]
    while time.perf_counter() < end:
        durations.append(_timed_ms(lambda: infer(images))[1])
    return max(3, int(np.ceil(1000 * protocol.block_s / float(np.median(durations)))))


def block(infer: InferenceFn, images: Array, runs: int) -> Array:
    """Latencies in ms of so many runs."""
    # The first runs of a block meet the other infer's caches and still spinning threads: they are not counted.
    infer(images)
    infer(images)
    samples = np.empty(runs)
    for index in range(runs):
        start = time.perf_counter_ns()
        infer(images)
        samples[index] = (time.perf_counter_ns() - start) / 1e6
    return samples


def reference_ms() -> float:
    """Median time of a fixed single-threaded kernel, which shows how fast the machine is at the moment."""
    values = np.linspace(0, 1, 1 << 16)
    return float(np.median([_timed_ms(lambda: np.sort(np.sin(values)))[1] for _ in range(15)]))


@contextlib.contextmanager
def foreign_share() -> Iterator[Callable[[], float]]:
    """How much of the time of this process's CPUs others took meanwhile, or the hypervisor: a share in [0, 1].

    A neighbour that is busy all the time slows evenly, so that neither drift nor spread shows it; and it slows a
    network with more small kernels more than the other.
    """
    start, busy, own = time.monotonic(), _busy_s(), time.process_time()
    share = 0.0
    yield lambda: share
    taken = (_busy_s() - busy) - (time.process_time() - own)
    share = min(1.0, max(0.0, taken / ((time.monotonic() - start) * len(_cpus()))))


def _busy_s() -> float:
    """Seconds that this process's CPUs have been busy, with any process."""
    times = psutil.cpu_times(percpu=True)
    idle = {"idle", "iowait", "guest", "guest_nice"}  # guests are in user time already
    return sum(sum(value for name, value in times[cpu]._asdict().items() if name not in idle) for cpu in _cpus())


def _cpus() -> list[int]:
    """The CPUs that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
