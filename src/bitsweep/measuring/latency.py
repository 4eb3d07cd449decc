"""Latency against the same engine's fp32, and how quiet the machine was meanwhile."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bitsweep import stats
from bitsweep.config.backend import InferenceFn
from bitsweep.measuring.causes import Profile, why_not_faster
from bitsweep.measuring.from_memory import TOLD, between_processes, share_of
from bitsweep.measuring.passes import Subject, write_pass
from bitsweep.measuring.timing import batch_of, time_artifacts, timed_ms
from bitsweep.results import LATENCY_SAMPLES, Array
from bitsweep.runtime import gpu

#: Runs of a quick look at a latency.
_QUICK_RUNS = 9
#: Flag of latencies that others decide: threads wait for the time slices of other processes.
CROWDED = "others use the cores"
CROWDED_FINDING = (
    "other processes use the cores, and its threads wait for them: no time is its own; measure it again on a quiet "
    "machine (remeasure=noisy)"
)
#: Flag of latencies that an emulator decides.
EMULATED = "emulated"
#: Runs whose median is the time that a GPU takes.
_DEVICE_RUNS = 50


def measure_latency(subject: Subject, *, examples: Array, folder: Path) -> None:
    """Time the artifact against the same engine's fp32 artifact.

    Args:
        examples: float32 images [N, C, H, W]; repeated where a batch needs more.
    """
    backend, threads = subject.backend, subject.threads
    artifacts = [subject.artifact] if subject.twin == subject.artifact else [subject.artifact, subject.twin]
    timed = time_artifacts(
        [partial(backend.load, artifact, threads=threads) for artifact in artifacts],
        examples,
        subject.protocol,
        threads=threads,
        folder=folder,
        device_ms=partial(_device_ms, subject) if backend.on_gpu else None,
    )
    metrics, flags, details = figures_of(timed, folder, subject)
    findings = cautions(flags, details)
    if not {CROWDED, EMULATED} & set(flags) and details["verdict"] not in ("", "faster"):
        own_ms = metrics["latency_p50_ms"]
        images = batch_of(examples, subject.protocol.batch_sizes[0])
        findings += _why_not_faster(subject, images, own_ms, own_ms * metrics["speedup"])
    write_pass(folder, "measure_latency", metrics, flags, details, findings=findings)


def figures_of(
    timed: dict[str, Any], folder: Path, subject: Subject
) -> tuple[dict[str, float], list[str], dict[str, Any]]:
    """Metrics, flags and details of what was timed, whose samples lie in a folder."""
    protocol = subject.protocol
    cache = int(timed.get("last_cache_bytes", 0))
    details: dict[str, Any] = {"threads": timed["threads"], "batches": timed["batches"]}
    metrics: dict[str, float] = {"load_ms": timed["load_ms"], "first_run_ms": timed["first_run_ms"]}
    flags = [EMULATED] if subject.target.cpu.is_emulated else []
    with np.load(folder / LATENCY_SAMPLES, allow_pickle=False) as stored:
        samples = dict(stored)
    for size in protocol.batch_sizes:
        noise, suffix = timed["batches"][str(size)], "" if size == protocol.batch_sizes[0] else f"_b{size}"
        if "out_of_memory" in noise:
            flags.append(f"no memory for batch {size}")
            continue
        if (device := samples.get(f"device_b{size}_ms")) is not None:
            metrics[f"device_p50_ms{suffix}"] = float(np.median(device))
        own = samples[f"candidate_b{size}_ms"]
        for percentile in (50, 90, 99):
            value = stats.percentile_if_supported(own, percentile / 100)
            if value is not None:
                metrics[f"latency_p{percentile}_ms{suffix}"] = value
        blocks = _blocks(samples, f"candidate_b{size}")
        low, high = stats.median_interval(blocks, confidence=protocol.confidence, seed=0)
        metrics |= {f"latency_p50_ms_low{suffix}": low, f"latency_p50_ms_high{suffix}": high}
        metrics[f"throughput_ips{suffix}"] = 1000 * size / float(np.median(own))
        if f"fp32_b{size}_ms" in samples:
            fp32 = _blocks(samples, f"fp32_b{size}")
            medians = [float(np.median(own)), float(np.median(samples[f"fp32_b{size}_ms"]))]
            shares = [
                share_of(files, subject.backend, ms, cache=cache)
                for files, ms in zip((subject.artifact, subject.twin), medians, strict=True)
            ]
            between = between_processes(*shares)
            if not suffix and max(shares) > TOLD:
                details["from_memory"] = {"share": max(shares), "between": between, "last_cache_bytes": cache}
            metrics[f"speedup_between{suffix}"] = between
            if noise["crowded"] or EMULATED in flags:
                gain = stats.undecided_speedup(fp32, blocks)
            else:
                gain = stats.paired_speedup(
                    fp32, blocks, confidence=protocol.confidence, seed=0, between=between, slowdown=noise["slowdown"]
                )
            metrics |= {
                f"speedup{suffix}": gain.ratio,
                f"speedup_low{suffix}": gain.low,
                f"speedup_high{suffix}": gain.high,
            }
            noise["verdict"] = gain.verdict
        found = [flag for flag, holds in (("noisy", noise["noisy"]), (CROWDED, noise["crowded"])) if holds]
        flags += [flag for flag in found if flag not in flags]
    details["verdict"] = timed["batches"][str(protocol.batch_sizes[0])].get("verdict", "")
    return metrics, flags, details


def cautions(flags: list[str], details: dict[str, Any]) -> list[str]:
    """What keeps times from being the artifact's own, in words."""
    if EMULATED in flags:
        return ["an emulator ran it: its accuracy is what such a processor computes, its times say nothing of one"]
    if CROWDED in flags:
        return [CROWDED_FINDING]
    found = []
    if (slowdown := max(batch.get("slowdown", 1.0) for batch in details["batches"].values())) > 1:
        found.append(
            "the cores were slower than at their best in nearly all blocks, or further apart, which may slow one "
            f"program by up to {slowdown:.1f} times and the other not at all: both ends of the speed-up's interval are "
            "moved by as much; measure it again on a quiet machine (remeasure=noisy)"
        )
    if rests := details.get("from_memory"):
        found.append(
            "weights that do not fit half of the last cache, which others use too, are read from memory in every run "
            f"(it has {rests['last_cache_bytes'] / 1e6:.0f} MB): from one measurement to the next, the speed-up "
            f"differs by {rests['between']:.0%} (a standard deviation, which its interval has)"
        )
    return found


def _blocks(samples: dict[str, Array], name: str) -> list[Array]:
    return np.split(samples[f"{name}_ms"], np.cumsum(samples[f"{name}_block_lengths"])[:-1])


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


def _settled_ms(infer: InferenceFn, images: Array) -> float:
    """Median latency after as many runs again."""
    samples = [timed_ms(lambda: infer(images))[1] for _ in range(2 * _QUICK_RUNS)]
    return float(np.median(samples[_QUICK_RUNS:]))


def _device_ms(subject: Subject, images: Array) -> Array:
    """How long a GPU took for runs of a batch in its memory, after as many that warmed it up."""
    loaded = subject.backend.load_on_device(subject.artifact, images, threads=subject.threads)
    return np.array([gpu.elapsed_ms(loaded.queue, loaded.stream) for _ in range(2 * _DEVICE_RUNS)])[_DEVICE_RUNS:]
