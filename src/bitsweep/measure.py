"""Measures an artifact: each pass in a process of its own that has loaded no other engine.

    inspect    of an artifact that cannot be run here: size, kernels that would be executed
    evaluate   accuracy, parity, size, executed kernels; keeps the logits
    race       latency against the same engine's fp32, in interleaved blocks, and a GPU's own; keeps the raw samples
    weigh      peak memory of loading and running the artifact alone, a GPU's too

Every pass writes one JSON file of metrics, flags and notes; `load_measurement` puts them together. What the metrics
mean is said in docs/measurement.md.
"""

import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from bitsweep import cuda, stats
from bitsweep.artifacts import Array, Compressed, Kernel, Measurement, Split, Table, Trained
from bitsweep.axes import Backend, Grid, Protocol, Runner, Scheme
from bitsweep.environment import physical_cores
from bitsweep.errors import BitsweepError, ran_out_of_memory
from bitsweep.scores import scores

#: Sizes below this share of fp32 need no explanation for 8-bit weights.
_EXPLAINED_SIZE_RATIO = 0.35
#: Files of an artifact's folder that no engine loads.
_NOTED = frozenset({"manifest.json", "kernels.json"})
#: Parity with the reference below which an artifact is not the model that was meant.
LEAST_AGREEMENT, LEAST_SQNR_DB = 0.99, 25.0
#: Runs of a quick look at a latency.
_QUICK_RUNS = 9
#: Runs whose median is the time that a GPU takes.
_DEVICE_RUNS = 50
_PASSES = ("inspect", "evaluate", "race", "weigh")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured, and the same engine's fp32 artifact to measure it against (itself where it is that one)."""

    artifact: Path
    twin: Path
    backend: Backend
    protocol: Protocol
    scheme: Scheme

    @property
    def threads(self) -> int:
        """Threads of the engine."""
        return self.protocol.threads or physical_cores()


# --------------------------------------------------------------------------- accuracy, parity, size, kernels


def inspect(subject: Subject, *, image_size: int, compressed: Compressed, folder: Path) -> None:
    """Note what the files of an artifact tell that no engine can run here; nothing is computed."""
    images = np.zeros((1, 3, image_size, image_size), np.float32)
    kernels = subject.backend.kernels(subject.artifact, images, threads=subject.threads)
    table = Table(
        name="kernels",
        columns=("kernel", "operation", "arithmetic", "multiply-accumulates"),
        # As text, because engines make up names of fused kernels that leave no room for a picture.
        rows=tuple((each.name, each.op, "integer" if each.integer else "float", str(each.macs)) for each in kernels),
    )
    notes, metrics, flags = _size(subject, compressed)
    more_notes, more_metrics, more_flags = _kernels(subject, kernels)
    flags = ["not run", *flags, *more_flags]
    _write(folder, "inspect", metrics | more_metrics, flags, notes | more_notes, tables=[table])


def evaluate(
    subject: Subject,
    *,
    test: Split,
    batches: Callable[..., Iterable[Any]],
    trained: Trained,
    compressed: Compressed,
    saturates: bool,
    folder: Path,
) -> None:
    """Measure top-1 on the whole test split from the artifact itself, and compare it with baseline and reference.

    Args:
        batches: ``(images, batch=N)`` gives stored images as the network takes them, N at a time.
        saturates: whether the engine's kernels were seen to fail on the largest sums of the scheme.
        folder: gets ``logits.npy`` of the test images and ``examples.npy`` for the other passes.
    """
    runner = subject.backend.load(subject.artifact, threads=subject.threads)
    logits = [runner(np.asarray(images)) for images in batches(test.images, batch=subject.protocol.eval_batch)]
    logits_NK = np.concatenate(logits).astype(np.float32)
    np.save(folder / "logits.npy", logits_NK)
    largest = max(subject.protocol.batch_sizes)
    repeated = test.images[np.arange(largest) % len(test)]
    (examples,) = (np.asarray(images) for images in batches(repeated, batch=largest))
    np.save(folder / "examples.npy", examples)

    metrics, flags = compare(logits_NK, test.labels, trained.test_logits_NK, compressed.test_logits_NK, subject)
    findings, tables = _where_it_diverges(subject, compressed, examples) if "diverges" in flags else ([], [])
    if saturates:
        flags.append("saturates")
        findings.append("sums of the largest products saturate in this engine's kernels on this CPU")
    kernels = subject.backend.kernels(subject.artifact, examples[:1], threads=subject.threads)
    notes: dict[str, Any] = {}
    for measured, more_metrics, more_flags in (_size(subject, compressed), _kernels(subject, kernels)):
        notes |= measured
        metrics |= more_metrics
        flags += more_flags
    _write(folder, "evaluate", metrics, flags, notes, findings=findings, tables=tables)


def compare(
    logits_NK: Array, labels_N: Array, baseline_NK: Array, reference_NK: Array, subject: Subject
) -> tuple[dict[str, float], list[str]]:
    """Accuracy metrics of logits against labels, fp32 baseline and reference, and the flags that follow."""
    n = len(labels_N)
    correct = logits_NK.argmax(1) == labels_N
    baseline_correct = baseline_NK.argmax(1) == labels_N
    lost, gained = stats.paired_counts(baseline_correct, correct)
    low, high = stats.wilson_interval(int(correct.sum()), n, subject.protocol.confidence)
    metrics = {
        "top1": float(correct.mean()),
        "top1_low": low,
        "top1_high": high,
        "top1_drop_pp": 100 * float(baseline_correct.mean() - correct.mean()),
        "flips": float(lost + gained),
        "mcnemar_p": stats.mcnemar_exact_p(lost, gained),
        "agreement": stats.agreement(baseline_NK, logits_NK),
        "sqnr_db": stats.sqnr_db(baseline_NK, logits_NK),
        "mean_kl": stats.mean_kl(baseline_NK, logits_NK),
        "parity_agreement": stats.agreement(reference_NK, logits_NK),
        "parity_sqnr_db": stats.sqnr_db(reference_NK, logits_NK),
    }
    flags = []
    if np.isfinite(logits_NK).all():
        metrics |= scores(logits_NK, labels_N)
    else:
        flags.append("non-finite logits")
    if metrics["parity_agreement"] < LEAST_AGREEMENT or metrics["parity_sqnr_db"] < LEAST_SQNR_DB:
        flags.append("diverges")
    return metrics, flags


def _where_it_diverges(subject: Subject, compressed: Compressed, examples: Array) -> tuple[list[str], list[Table]]:
    """The first layer whose values are too far from the reference's, and how far those of all layers are."""
    from bitsweep.divergence import divergence, first_fault
    from bitsweep.programs import load_program

    try:
        program = load_program(compressed.program)
        table = divergence(program, subject.backend, examples[:8], threads=subject.threads)
    except BitsweepError as error:
        return [f"where the engine leaves the reference cannot be seen: {error}"], []
    fault = first_fault(table, least_sqnr_db=LEAST_SQNR_DB)
    return [fault or "the engine agrees with the reference when it is asked for the values in between"], [table]


def _size(subject: Subject, compressed: Compressed) -> tuple[dict[str, Any], dict[str, float], list[str]]:
    """Bytes of the artifact as stored, and the bound that parameters x bits sets."""
    stored, twin = stored_bytes(subject.artifact), stored_bytes(subject.twin)
    bits = sum(layer.stored_bits for layer in compressed.layers)
    metrics = {
        "size_mb": stored / 1e6,
        "size_ratio": stored / twin,
        "size_bound_mb": bits / 8e6,
        "bits_per_parameter": bits / sum(layer.parameters for layer in compressed.layers),
    }
    left = {layer.name: layer.reason for layer in compressed.layers if layer.reason and "float" in layer.weights}
    large = isinstance(subject.scheme.weights, Grid) and metrics["size_ratio"] > _EXPLAINED_SIZE_RATIO * (
        max(8, subject.scheme.weights.bits) / 8
    )
    return {"layers_left_float": left}, metrics, ["large"] if large else []


def stored_bytes(folder: Path) -> int:
    """Bytes of an artifact's files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and file.name not in _NOTED)


def _kernels(subject: Subject, kernels: Sequence[Kernel]) -> tuple[dict[str, Any], dict[str, float], list[str]]:
    """Share of multiply-accumulates that the engine executed on integers, and what it left in float."""
    macs = sum(kernel.macs for kernel in kernels)
    share = sum(kernel.macs for kernel in kernels if kernel.integer) / macs if macs else 0.0
    islands = [f"{kernel.op} {kernel.name}" for kernel in kernels if kernel.macs and not kernel.integer]
    notes = {"macs": macs, "float_islands": islands if subject.scheme.arithmetic == "integer" else []}
    flags = ["mostly float"] if subject.scheme.arithmetic == "integer" and share < 0.5 else []
    return notes, {"int8_mac_share": share}, flags


# --------------------------------------------------------------------------- latency


def race(subject: Subject, *, examples: Array, folder: Path) -> None:
    """Time the artifact against the same engine's fp32 artifact: blocks A B B A, raw samples kept.

    Args:
        examples: float32 images [N, 3, H, W]; repeated where a batch needs more.
    """
    protocol = subject.protocol
    _pin(subject.threads)
    runner, load_ms = _timed_ms(lambda: subject.backend.load(subject.artifact, threads=subject.threads))
    first = _batch(examples, protocol.batch_sizes[0])
    _, first_run_ms = _timed_ms(lambda: runner(first))
    racers = [runner]
    if subject.twin != subject.artifact:
        racers.append(subject.backend.load(subject.twin, threads=subject.threads))

    metrics: dict[str, float] = {"load_ms": load_ms, "first_run_ms": first_run_ms}
    flags: list[str] = []
    notes: dict[str, Any] = {"threads": subject.threads, "batches": {}}
    samples: dict[str, Array] = {}
    for size in protocol.batch_sizes:
        suffix = "" if size == protocol.batch_sizes[0] else f"_b{size}"
        try:
            blocks, noise = _until_quiet(racers, _batch(examples, size), protocol)
            if subject.backend.on_gpu:
                samples[f"device_b{size}_ms"] = _device_ms(subject, _batch(examples, size))
                metrics[f"device_p50_ms{suffix}"] = float(np.median(samples[f"device_b{size}_ms"]))
        except Exception as error:
            if size == protocol.batch_sizes[0] or not ran_out_of_memory(error):
                raise
            notes["batches"][str(size)] = {"out_of_memory": str(error).partition("\n")[0]}
            flags.append(f"no memory for batch {size}")
            continue
        own = np.concatenate(blocks[0])
        for percentile in (50, 90, 99):
            value = stats.percentile_if_supported(own, percentile / 100)
            if value is not None:
                metrics[f"latency_p{percentile}_ms{suffix}"] = value
        metrics[f"throughput_ips{suffix}"] = 1000 * size / float(np.median(own))
        if len(blocks) == 2:
            gain = stats.paired_speedup(blocks[1], blocks[0], confidence=protocol.confidence, seed=0)
            metrics |= {
                f"speedup{suffix}": gain.ratio,
                f"speedup_low{suffix}": gain.low,
                f"speedup_high{suffix}": gain.high,
            }
            noise["verdict"] = gain.verdict
        if noise["noisy"] and "noisy" not in flags:
            flags.append("noisy")
        notes["batches"][str(size)] = noise
        for racer, its_blocks in zip(("candidate", "fp32"), blocks, strict=False):
            samples[f"{racer}_b{size}_ms"] = np.concatenate(its_blocks)
            samples[f"{racer}_b{size}_block_lengths"] = np.array([len(block) for block in its_blocks])
    np.savez_compressed(folder / "latency_samples.npz", allow_pickle=False, **samples)
    notes["verdict"] = notes["batches"][str(protocol.batch_sizes[0])].get("verdict", "")
    findings = []
    if notes["verdict"] not in ("", "faster"):
        findings = _why_not_faster(
            subject, first, metrics["latency_p50_ms"], metrics["latency_p50_ms"] * metrics["speedup"]
        )
    _write(folder, "race", metrics, flags, notes, findings=findings)


def _why_not_faster(subject: Subject, images: Array, own_ms: float, fp32_ms: float) -> list[str]:
    """What the profiles of an artifact and of the same engine's fp32 tell."""
    from bitsweep.causes import Profile, why_not_faster

    own, fp32 = (
        subject.backend.kernels(folder, images, threads=subject.threads) for folder in (subject.artifact, subject.twin)
    )
    return why_not_faster(
        Profile(latency=own_ms, kernels=own),
        Profile(latency=fp32_ms, kernels=fp32),
        subject.scheme,
        threads=subject.threads,
        alone_ms=_settled_ms(subject.backend.load(subject.artifact, threads=1), images),
    )


def _pin(threads: int) -> None:
    """Let this process run on as many CPUs as the engine has threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, _cpus()[:threads])


def _batch(examples: Array, size: int) -> Array:
    return np.ascontiguousarray(np.resize(examples, (size, *examples.shape[1:])))


def _timed_ms(action: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter_ns()
    result = action()
    return result, (time.perf_counter_ns() - start) / 1e6


def _settled_ms(runner: Runner, images: Array) -> float:
    """Median latency after as many runs again."""
    samples = [_timed_ms(lambda: runner(images))[1] for _ in range(2 * _QUICK_RUNS)]
    return float(np.median(samples[_QUICK_RUNS:]))


def _device_ms(subject: Subject, images: Array) -> Array:
    """How long a GPU took for runs of a batch in its memory, after as many that warmed it up."""
    loaded = subject.backend.load_on_device(subject.artifact, images, threads=subject.threads)
    return np.array([cuda.elapsed_ms(loaded.queue, loaded.stream) for _ in range(2 * _DEVICE_RUNS)])[_DEVICE_RUNS:]


def _until_quiet(racers: list[Runner], images: Array, protocol: Protocol) -> tuple[list[list[Array]], dict[str, Any]]:
    """Race until the machine was quiet, or the repeats are used up; the quietest attempt counts.

    Returns:
        Blocks of latencies in ms for each racer, and what is known of the noise.
    """
    best: tuple[float, list[list[Array]], dict[str, Any]] | None = None
    for attempt in range(1 + protocol.repeats):
        before = reference_ms()
        with foreign_share() as foreign:
            blocks = interleaved_blocks(racers, images, protocol)
        drift = stats.drift(before, reference_ms())
        spread = stats.relative_iqr(np.concatenate(blocks[0]))
        badness = max(
            abs(drift) / protocol.max_drift, spread / protocol.max_spread, foreign() / protocol.max_foreign_share
        )
        noise = {
            "noisy": badness > 1,
            "drift": drift,
            "spread": spread,
            "foreign_share": foreign(),
            "attempts": attempt + 1,
        }
        if best is None or badness < best[0]:
            best = badness, blocks, noise
        best[2]["attempts"] = attempt + 1
        if badness <= 1:
            break
    assert best is not None
    return best[1], best[2]


def interleaved_blocks(racers: list[Runner], images: Array, protocol: Protocol) -> list[list[Array]]:
    """Latencies in ms of each racer, in blocks that alternate A B B A, so that a drifting machine slows all alike."""
    runs = [_runs_a_block(racer, images, protocol) for racer in racers]
    blocks: list[list[Array]] = [[] for _ in racers]
    gc.disable()
    try:
        for turn in range(protocol.blocks):
            order = range(len(racers)) if turn % 2 == 0 else reversed(range(len(racers)))
            for index in order:
                blocks[index].append(_block(racers[index], images, runs[index]))
    finally:
        gc.enable()
    return blocks


def _runs_a_block(racer: Runner, images: Array, protocol: Protocol) -> int:
    """Warm up, and tell how many runs fill a block."""
    end = time.perf_counter() + protocol.warmup_s
    durations = [_timed_ms(lambda: racer(images))[1] for _ in range(3)]
    while time.perf_counter() < end:
        durations.append(_timed_ms(lambda: racer(images))[1])
    return max(3, int(np.ceil(1000 * protocol.block_s / float(np.median(durations)))))


def _block(racer: Runner, images: Array, runs: int) -> Array:
    # The first runs of a block meet the other racer's caches and still spinning threads: they are not counted.
    racer(images)
    racer(images)
    samples = np.empty(runs)
    for index in range(runs):
        start = time.perf_counter_ns()
        racer(images)
        samples[index] = (time.perf_counter_ns() - start) / 1e6
    return samples


def reference_ms() -> float:
    """Median time of a fixed single-threaded kernel, which tells how fast the machine is just now."""
    values = np.linspace(0, 1, 1 << 16)
    return float(np.median([_timed_ms(lambda: np.sort(np.sin(values)))[1] for _ in range(15)]))


@contextlib.contextmanager
def foreign_share() -> Iterator[Callable[[], float]]:
    """How much of the time of this process's CPUs others took meanwhile, or the hypervisor: a share in [0, 1].

    A neighbour that is busy all the time slows evenly, so that neither drift nor spread tell of it; and it slows a
    network with more small kernels more than the other.
    """
    start, busy, own = time.monotonic(), _busy_s(), time.process_time()
    share = 0.0
    yield lambda: share
    taken = (_busy_s() - busy) - (time.process_time() - own)
    share = min(1.0, max(0.0, taken / ((time.monotonic() - start) * len(_cpus()))))


def _busy_s() -> float:
    """Seconds that this process's CPUs have been busy, whoever kept them so."""
    times = psutil.cpu_times(percpu=True)
    idle = {"idle", "iowait", "guest", "guest_nice"}  # guests are in user time already
    return sum(sum(value for name, value in times[cpu]._asdict().items() if name not in idle) for cpu in _cpus())


def _cpus() -> list[int]:
    """The CPUs that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


# --------------------------------------------------------------------------- memory


def weigh(subject: Subject, *, examples: Path, folder: Path) -> None:
    """Measure the peak memory of a new interpreter that imports the engine, loads the artifact and runs it once.

    Args:
        examples: ``.npy`` file of float32 images [N, 3, H, W].
    """
    script = "import pickle, sys; from bitsweep.measure import print_peaks;print_peaks(**pickle.load(sys.stdin.buffer))"
    import pickle

    request = {"subject": subject, "examples": examples}
    finished = subprocess.run([sys.executable, "-c", script], input=pickle.dumps(request), capture_output=True)
    if finished.returncode:
        sys.stderr.buffer.write(finished.stderr)
        raise RuntimeError(f"the process that measures memory ended with {finished.returncode}")
    _write(folder, "weigh", json.loads(finished.stdout.splitlines()[-1]), [], {})


def print_peaks(subject: Subject, examples: Path) -> None:
    """Load and run an artifact in this process, and print by how many MB its resident set grew at most.

    On a GPU also by how many the memory in use grew there, which engines keep as long as they are loaded.
    """
    images, on_gpu = np.load(examples)[: subject.protocol.batch_sizes[0]], subject.backend.on_gpu
    before = _status_kb("VmRSS")
    before_mb = cuda.used_mb() if on_gpu else 0.0
    runner = subject.backend.load(subject.artifact, threads=subject.threads)
    runner(images)
    peaks = {"peak_rss_mb": (_status_kb("VmHWM") - before) * 1024 / 1e6}
    if on_gpu:
        peaks["peak_device_mb"] = cuda.used_mb() - before_mb
    print(json.dumps(peaks))


def _status_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


# --------------------------------------------------------------------------- putting together


def _write(
    folder: Path,
    name: str,
    metrics: dict[str, float],
    flags: list[str],
    notes: dict[str, Any],
    *,
    findings: Sequence[str] = (),
    tables: Sequence[Table] = (),
) -> None:
    written = {
        "metrics": {metric: value for metric, value in metrics.items() if np.isfinite(value)},
        "flags": flags,
        "notes": notes,
        "findings": list(findings),
        "tables": [asdict(table) for table in tables],
    }
    (folder / f"{name}.json").write_text(json.dumps(written))


def load_measurement(folder: Path) -> Measurement:
    """Put the passes of a finished measurement together."""
    passes = [json.loads(file.read_text()) for name in _PASSES if (file := folder / f"{name}.json").exists()]
    notes = {key: value for one in passes for key, value in one["notes"].items()}
    return Measurement(
        metrics={name: value for one in passes for name, value in one["metrics"].items()},
        flags=tuple(flag for one in passes for flag in one["flags"]),
        verdict=notes.get("verdict", ""),
        findings=tuple(finding for one in passes for finding in one["findings"]),
        notes=notes,
        tables=tuple(
            Table(**(table | {"rows": tuple(map(tuple, table["rows"]))})) for one in passes for table in one["tables"]
        ),
        folder=folder,
    )
