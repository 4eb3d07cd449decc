import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from bitsweep.config.backend import Backend, InferenceFn, OnDevice
from bitsweep.config.configurable import configurable
from bitsweep.config.precision import FLOAT32, Grid, Precision, Scheme
from bitsweep.config.protocol import MeasurementProtocol
from bitsweep.measuring import accuracy, latency, memory, timing
from bitsweep.measuring.others import Others
from bitsweep.measuring.pace import Moment
from bitsweep.measuring.passes import Subject, load_measurement
from bitsweep.results import (
    ROUNDED_ON_FEWER,
    USUAL_CALIBRATION,
    Array,
    Compressed,
    LayerRecord,
    Measurement,
    OpProfile,
    Split,
    Splits,
    Table,
    Trained,
)  # fmt: skip
from bitsweep.runtime.environment import Cpu
from bitsweep.targets.local import ThisMachine
from tests.processes import require_once

BFLOAT16 = Scheme(weights="bfloat16", activations="bfloat16", arithmetic="bfloat16")
HERE = ThisMachine(name="local")
INT8 = Scheme(
    weights=Grid(bits=8, signed=True, symmetric=True, per_channel=True),
    activations=Grid(bits=8, signed=False, symmetric=False),
    arithmetic="integer",
)
EXAMPLES = np.zeros((2, 3, 4, 4), np.float32)


@configurable
class Sleeper(Backend):
    """An engine whose artifact says how long to sleep, and what it has memory for."""

    unloaded: ClassVar[tuple[str, ...]] = ("kernels.json",)
    name: str = "sleeper"
    package: ClassVar[str] = "numpy"

    def unsupported(self, precision: Precision) -> str | None:
        return None

    def scheme(self, precision: Precision, cpu: Cpu) -> Scheme:
        return FLOAT32

    def lower(self, program: Any, folder: Path) -> None:
        raise AssertionError("there is nothing to lower")

    def load(self, folder: Path, *, threads: int) -> InferenceFn:
        about = json.loads((folder / "artifact.json").read_text())
        held = np.ones(about.get("bytes", 0), np.uint8)

        def run(images: np.ndarray) -> np.ndarray:
            time.sleep((about["ms"] + 0 * held[:1].sum()) / 1000)
            affinity.append(os.sched_getaffinity(0))
            if len(images) > about.get("most_images", 1000):
                np.empty(1 << 60, np.uint8)  # more than any machine has
            return np.stack([images[:, 0, 0, 0], about.get("bias", 0) - images[:, 0, 0, 0]], axis=1)

        return run

    def profile(self, folder: Path, images: np.ndarray, *, threads: int) -> list[OpProfile]:
        return [
            OpProfile(name="a", op="QLinearConv", macs=30, integer=True),
            OpProfile(name="b", op="Conv", macs=10, integer=False),
            OpProfile(name="c", op="Softmax", macs=0, integer=False),
        ]


@configurable
class SleeperOnGpu(Sleeper):
    """The same on a GPU, where it takes a quarter of the time once the images are there."""

    @property
    def on_gpu(self) -> bool:
        return True

    def load_on_device(self, folder: Path, images: np.ndarray, *, threads: int) -> OnDevice:
        ms = json.loads((folder / "artifact.json").read_text())["ms"] / 4
        return OnDevice(queue=lambda: ms * len(images), stream=7)


affinity: list[set[int]] = []


def artifact(folder: Path, name: str, **about: Any) -> Path:
    (folder / name).mkdir()
    (folder / name / "artifact.json").write_text(json.dumps(about))
    return folder / name


def protocol(**knobs: Any) -> MeasurementProtocol:
    quick = {"name": "test", "threads": 1, "warmup_s": 0.01, "blocks": 10, "block_s": 0.02, "repeats": 0}
    quick |= {"max_foreign_share": 1e9, "max_slowdown": 1e9}  # by others on this machine: test_crowded.py, test_pace.py
    return MeasurementProtocol(**quick | knobs)


def raced(subject: Subject, folder: Path) -> Measurement:
    allowed = os.sched_getaffinity(0)
    try:
        latency.measure_latency(subject, examples=EXAMPLES, folder=folder)
    finally:
        os.sched_setaffinity(0, allowed)
    return load_measurement(folder)


def test_a_sleep_of_known_length_is_measured(tmp_path: Path) -> None:
    slow, quick = artifact(tmp_path, "slow", ms=12.0), artifact(tmp_path, "quick", ms=6.0)
    subject = Subject(artifact=quick, twin=slow, backend=Sleeper(), protocol=protocol(), scheme=FLOAT32, target=HERE)
    measurement = raced(subject, tmp_path)
    metrics = measurement.metrics
    assert metrics["latency_p50_ms"] >= 6
    assert metrics["speedup_low"] <= metrics["speedup"] <= metrics["speedup_high"]
    assert metrics["speedup"] == pytest.approx(2, rel=0.4)
    assert measurement.verdict == "faster"
    assert metrics["throughput_ips"] == pytest.approx(1000 / metrics["latency_p50_ms"])
    assert "latency_p99_ms" not in metrics
    assert "device_p50_ms" not in metrics
    samples = np.load(tmp_path / "latency_samples.npz")
    assert np.median(samples["candidate_b1_ms"]) == pytest.approx(metrics["latency_p50_ms"])
    assert samples["fp32_b1_block_lengths"].sum() == len(samples["fp32_b1_ms"])


def test_equal_artifacts_are_not_distinguished_and_own_twin_has_no_speedup(tmp_path: Path) -> None:
    one, other = artifact(tmp_path, "one", ms=5.0), artifact(tmp_path, "other", ms=5.0)
    subject = Subject(artifact=one, twin=other, backend=Sleeper(), protocol=protocol(), scheme=FLOAT32, target=HERE)
    metrics = raced(subject, tmp_path).metrics
    assert metrics["speedup_low"] <= metrics["speedup"] <= metrics["speedup_high"]
    assert metrics["speedup"] == pytest.approx(1, abs=0.5)  # of two sleeps on a machine that may be busy
    alone = Subject(artifact=one, twin=one, backend=Sleeper(), protocol=protocol(), scheme=FLOAT32, target=HERE)
    assert "speedup" not in raced(alone, tmp_path).metrics


def test_further_batch_sizes_are_suffixed(tmp_path: Path) -> None:
    one = artifact(tmp_path, "one", ms=0.5)
    subject = Subject(
        artifact=one, twin=one, backend=Sleeper(), protocol=protocol(batch_sizes=(1, 3)), scheme=FLOAT32, target=HERE
    )
    metrics = raced(subject, tmp_path).metrics
    assert {"latency_p50_ms", "latency_p50_ms_b3", "throughput_ips_b3"} <= set(metrics)
    assert metrics["throughput_ips_b3"] == pytest.approx(3000 / metrics["latency_p50_ms_b3"])


def test_a_batch_that_does_not_fit_is_flagged_and_the_others_are_measured(tmp_path: Path) -> None:
    one = artifact(tmp_path, "one", ms=0.2, most_images=4)
    sizes = protocol(batch_sizes=(1, 8, 2), max_spread=1e9, max_drift=1e9, max_foreign_share=1e9)
    subject = Subject(artifact=one, twin=one, backend=Sleeper(), protocol=sizes, scheme=FLOAT32, target=HERE)
    measurement = raced(subject, tmp_path)
    assert measurement.flags == ("no memory for batch 8",)
    assert {"throughput_ips", "throughput_ips_b2"} <= set(measurement.metrics)
    assert "throughput_ips_b8" not in measurement.metrics
    assert "allocate" in measurement.details["batches"]["8"]["out_of_memory"]
    small = Subject(
        artifact=one, twin=one, backend=Sleeper(), protocol=protocol(batch_sizes=(8,)), scheme=FLOAT32, target=HERE
    )
    with pytest.raises(MemoryError):
        raced(small, tmp_path)


def test_a_gpu_is_timed_apart_from_the_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the engine says itself in place of CUDA's events, in the stream that it runs in."""

    def elapsed_ms(queue: Callable[[], float], stream: int) -> float:
        assert stream == 7
        return queue()

    monkeypatch.setattr(latency.gpu, "elapsed_ms", elapsed_ms)
    one = artifact(tmp_path, "one", ms=4.0)
    both = protocol(batch_sizes=(1, 3), blocks=6)
    subject = Subject(artifact=one, twin=one, backend=SleeperOnGpu(), protocol=both, scheme=FLOAT32, target=HERE)
    metrics = raced(subject, tmp_path).metrics
    assert metrics["latency_p50_ms"] > 4
    assert (metrics["device_p50_ms"], metrics["device_p50_ms_b3"]) == (1, 3)
    samples = np.load(tmp_path / "latency_samples.npz")
    assert len(samples["device_b1_ms"]) == 50
    assert set(samples["device_b3_ms"]) == {3}


@pytest.mark.parametrize("threads", [1, 2])
def test_as_many_cpus_as_threads(threads: int, tmp_path: Path) -> None:
    if len(os.sched_getaffinity(0)) < threads:
        pytest.skip(f"this machine has fewer than {threads} CPUs")
    one = artifact(tmp_path, "one", ms=0.1)
    subject = Subject(
        artifact=one, twin=one, backend=Sleeper(), protocol=protocol(threads=threads), scheme=FLOAT32, target=HERE
    )
    raced(subject, tmp_path)
    assert len(affinity[-1]) == threads


def test_a_noisy_machine_is_flagged_and_raced_again(tmp_path: Path) -> None:
    one = artifact(tmp_path, "one", ms=0.1)
    strict = protocol(max_spread=1e-9, repeats=2)
    subject = Subject(artifact=one, twin=one, backend=Sleeper(), protocol=strict, scheme=FLOAT32, target=HERE)
    measurement = raced(subject, tmp_path)
    assert measurement.flags == ("noisy",)
    assert measurement.details["batches"]["1"]["attempts"] == 3


def test_what_others_compute_is_told_from_ones_own() -> None:
    """Own work counts for nothing; a neighbour that is busy all the time on one of n CPUs counts for an n-th."""

    def work(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass

    def is_alone() -> bool:
        alone = Others()
        with alone.watched():
            work(0.5)
        return alone.share < 0.3

    require_once(is_alone)
    crowded = Others()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
        try:
            time.sleep(0.2)
            with crowded.watched():
                time.sleep(1)
        finally:
            neighbour.kill()
    assert crowded.share > 0.5 / len(os.sched_getaffinity(0))


def test_blocks_alternate() -> None:
    turns: list[str] = []
    artifacts = [lambda images, name=name: turns.append(name) or time.sleep(0.001) for name in "AB"]
    quick = protocol(blocks=6, warmup_s=0, block_s=1e-6)
    even = Moment(arithmetic=1, distance=1, kernel_ms=1)
    blocks, moments = timing.interleaved_blocks(artifacts, EXAMPLES, quick, lambda: even, Others())
    assert "".join(turns).endswith("AAAAABBBBBBBBBBAAAAA" * 3)
    assert moments == [[even] * 3] * 6
    assert [[len(block) for block in own] for own in blocks] == [[3] * 6] * 2


def test_peak_memory_is_what_the_artifact_takes(tmp_path: Path) -> None:
    np.save(tmp_path / "examples.npy", EXAMPLES)
    for megabytes in (100, 300):
        folder = tmp_path / str(megabytes)
        folder.mkdir()
        one = artifact(folder, "one", ms=0, bytes=megabytes * 10**6)
        subject = Subject(artifact=one, twin=one, backend=Sleeper(), protocol=protocol(), scheme=FLOAT32, target=HERE)
        memory.measure_memory(subject, examples=tmp_path / "examples.npy", folder=folder)
        assert load_measurement(folder).metrics["peak_rss_mb"] == pytest.approx(megabytes, abs=10)


def _batches(images: np.ndarray, *, batch: int) -> Iterator[np.ndarray]:
    for start in range(0, len(images), batch):
        yield images[start : start + batch].astype(np.float32).transpose(0, 3, 1, 2)


def compressed(folder: Path, reference_N: Array, reference_NK: Array, **about: Any) -> Compressed:
    """A network of one layer with a megabyte of weights."""
    layer = LayerRecord(name="a", kind="linear", weights="", activations="", parameters=10, stored_bits=8_000_000)
    given = {"layers": (layer,), "curves": (), "tables": (), "layer_stats": ()} | about
    return Compressed(program=folder, reference_N=reference_N, reference_NK=reference_NK, **given)


def evaluated(
    tmp_path: Path,
    scheme: Scheme,
    *,
    saturates: bool = False,
    guesses: bool = False,
    watched: int = 0,
    source: str = USUAL_CALIBRATION,
    sample: Sequence[int] = range(10),
    judged: Sequence[int] = (),
    tables: tuple[Table, ...] = (),
    **about: Any,
) -> Measurement:
    """Evaluate an artifact that calls an image 0 if its first pixel is above half of the bias."""
    values = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], np.uint8)
    test = Split(images=np.broadcast_to(values[:, None, None, None], (10, 2, 2, 1)), labels=(values <= 4).astype(int))
    exact = np.stack([values, 9.0 - values], axis=1).astype(np.float32)
    accuracy.evaluate(
        Subject(
            artifact=artifact(tmp_path, "artifact", ms=0, **about),
            twin=artifact(tmp_path, "twin", ms=0, padding="x" * 1000),
            backend=Sleeper(),
            protocol=protocol(eval_batch=3),
            scheme=scheme,
            target=HERE,
        ),
        accuracy.Material(
            splits=Splits(
                train=test,
                val=test,
                test=test,
                classes=("a", "b"),
                mean_C=(0.5,),
                std_C=(0.5,),
                fingerprint="",
                unlabelled=None if source == USUAL_CALIBRATION else test.images,
            ),
            validation_N=np.array(judged, np.int64),
            batches=_batches,
            trained=Trained(
                checkpoint=tmp_path,
                history=(),
                best_epoch=0,
                val_top1=1,
                device="cpu",
                test_logits_NK=np.zeros_like(exact) if guesses else exact,
                validation_right_N=values != 9,
            ),
            compressed=compressed(
                tmp_path,
                np.array(sample),
                exact[sample],
                calibrated_on=watched,
                tables=tables,
            ),
        ),
        saturates=saturates,
        folder=tmp_path,
    )
    return load_measurement(tmp_path)


def test_validation_images_are_judged_beside_their_baseline(tmp_path: Path) -> None:
    """The artifact has images 5 to 8 wrong, the baseline 9."""
    metrics = evaluated(tmp_path, FLOAT32, bias=18, judged=[0, 4, 5, 8, 9]).metrics
    assert {name: metrics[f"validation_{name}"] for name in ("images", "top1", "drop_pp", "flips")} == {
        "images": 5, "top1": 0.6, "drop_pp": pytest.approx(20), "flips": 3,
    }  # fmt: skip
    (tmp_path / "none").mkdir()
    assert "validation_images" not in evaluated(tmp_path / "none", FLOAT32, bias=18).metrics


def test_parity_is_that_of_the_sample_and_accuracy_that_of_all(tmp_path: Path) -> None:
    """The artifact calls images 5 to 8 otherwise than the reference does."""
    (tmp_path / "part").mkdir()
    whole = evaluated(tmp_path, FLOAT32, bias=18)
    part = evaluated(tmp_path / "part", FLOAT32, bias=18, sample=[0, 4, 5, 9])
    assert (whole.metrics["parity_agreement"], part.metrics["parity_agreement"]) == (0.6, 0.75)
    assert whole.metrics["top1"] == part.metrics["top1"] == 0.6


@pytest.mark.parametrize(
    ("watched", "source", "told"),
    [
        (0, "training images", ""),
        (1, "training images", "calibrated on 1 training images: ranges are those of few pictures; raise"),
        (200, "training images", ""),
        (200, "images of dataset.calibration", "calibrated on 200 images of dataset.calibration"),
        (0, "images of dataset.calibration", ""),
    ],
)
def test_images_of_the_calibration_are_counted_and_unusual_ones_are_told(
    watched: int, source: str, told: str, tmp_path: Path
) -> None:
    measurement = evaluated(tmp_path, FLOAT32, watched=watched, source=source, bias=9)
    assert measurement.metrics.get("calibration_images", 0) == watched
    found = [finding for finding in measurement.findings if finding.startswith("calibrated on")]
    assert [finding[: len(told)] for finding in found] == [told] * bool(told)


def test_fewer_images_for_rounding_than_for_ranges_are_told(tmp_path: Path) -> None:
    table = Table(name=ROUNDED_ON_FEWER, columns=("images", "number"), rows=(("watched", 256), ("rounded on", 167)))
    (told,) = evaluated(tmp_path, FLOAT32, bias=9, watched=256, tables=(table,)).findings
    assert told.startswith("activations were watched on 256 images, and layers rounded on 167 of them")


def test_what_cannot_run_is_weighed_by_its_files(tmp_path: Path) -> None:
    lowered, twin = artifact(tmp_path, "artifact", ms=0), artifact(tmp_path, "twin", ms=0, padding="x" * 1000)
    (lowered / "kernels.json").write_text("[]")
    accuracy.inspect(
        Subject(artifact=lowered, twin=twin, backend=Sleeper(), protocol=protocol(), scheme=FLOAT32, target=HERE),
        input_shape=(3, 4, 4),
        compressed=compressed(tmp_path, np.arange(5), EXAMPLES),
        folder=tmp_path,
    )
    measurement = load_measurement(tmp_path)
    sizes = {"size_mb", "size_ratio", "size_bound_mb", "bits_per_parameter"}
    assert measurement.metrics.keys() == {*sizes, "int8_mac_share"}
    assert measurement.metrics["size_mb"] == (lowered / "artifact.json").stat().st_size / 1e6
    assert measurement.metrics["int8_mac_share"] == 0.75
    assert measurement.flags == ("not run",)
    (kernels,) = measurement.tables
    assert kernels.rows[0] == ("a", "QLinearConv", "integer", "30")


def test_an_exact_artifact(tmp_path: Path) -> None:
    measurement = evaluated(tmp_path, FLOAT32, bias=9)
    metrics = measurement.metrics
    assert (metrics["top1"], metrics["flips"], metrics["mcnemar_p"], metrics["parity_agreement"]) == (1, 0, 1, 1)
    assert metrics["size_mb"] == (tmp_path / "artifact" / "artifact.json").stat().st_size / 1e6
    assert metrics["size_bound_mb"] == 1
    assert metrics["bits_per_parameter"] == 800_000
    assert (metrics["balanced_accuracy"], metrics["f1_macro"], metrics["auc"]) == (1, 1, 1)
    assert metrics["int8_mac_share"] == 0.75
    assert measurement.flags == ()
    assert np.load(tmp_path / "logits.npy").shape == (10, 2)


def test_an_artifact_that_errs(tmp_path: Path) -> None:
    measurement = evaluated(tmp_path, INT8, bias=13)
    metrics = measurement.metrics
    # Pixels 5 and 6 are now called 1, though they are 0.
    assert metrics["top1"] == 0.8
    assert metrics["top1_drop_pp"] == pytest.approx(20)
    assert (metrics["flips"], metrics["mcnemar_p"]) == (2, 0.5)
    assert metrics["agreement"] == metrics["parity_agreement"] == 0.8
    assert "diverges" in measurement.flags
    assert "cannot be seen" in measurement.findings[0]  # there is no program behind this artifact
    assert measurement.details["float_islands"] == ["Conv b"]


def test_a_baseline_that_guesses_is_flagged(tmp_path: Path) -> None:
    measurement = evaluated(tmp_path, FLOAT32, bias=9, guesses=True)
    assert measurement.flags == ("at chance",)
    assert measurement.metrics["top1_drop_pp"] == -50


def test_kernels_that_saturate_are_flagged(tmp_path: Path) -> None:
    measurement = evaluated(tmp_path, FLOAT32, saturates=True, bias=9)
    assert measurement.flags == ("saturates",)
    assert "largest products saturate" in measurement.findings[0]


def test_logits_that_are_not_finite_are_flagged(tmp_path: Path) -> None:
    measurement = evaluated(tmp_path, FLOAT32, bias=float("nan"))
    assert "non-finite logits" in measurement.flags
    assert "log_loss" not in measurement.metrics


def compared(
    engine_NK: np.ndarray,
    labels_N: np.ndarray,
    baseline_NK: np.ndarray,
    reference_NK: np.ndarray,
    folder: Path,
    *,
    scheme: Scheme = INT8,
) -> tuple[dict[str, float], list[str]]:
    """Metrics and flags of an engine whose reference was run on the second half of the images, from ``N / 2`` on."""
    later_N = np.arange(len(labels_N) // 2, len(labels_N))
    compressed = Compressed(
        program=folder, layers=(), curves=(), tables=(), layer_stats=(), reference_N=later_N,
        reference_NK=reference_NK[later_N],
    )  # fmt: skip
    subject = Subject(artifact=folder, twin=folder, backend=Sleeper(), protocol=protocol(), scheme=scheme, target=HERE)
    return accuracy.compare(engine_NK, labels_N, baseline_NK, compressed, subject)


@pytest.mark.parametrize(
    ("scheme", "rounding_db", "engine_db", "flagged"),
    [
        (FLOAT32, math.inf, 40, False),
        (FLOAT32, math.inf, 24, True),  # nothing is rounded that an engine could round another way
        (INT8, 35, 26, False),
        (INT8, 35, 24, True),
        (INT8, 22, 23.5, False),  # sums in another order, where rounding alone leaves 22 dB
        (INT8, 22, 21, True),
        (INT8, 22, 17, True),  # sums that saturate
        (INT8, 10, 19, True),
        (INT8, 10, 21, False),
        (BFLOAT16, 40, 24, True),
        (BFLOAT16, 28, 23, False),  # rounded after other operations
        (BFLOAT16, 28, 21, True),
        (BFLOAT16, 22, 19, True),
    ],
)
def test_an_engine_may_not_add_more_noise_than_rounding_does(
    scheme: Scheme, rounding_db: float, engine_db: float, flagged: bool, tmp_path: Path
) -> None:
    noise_3NK = np.random.default_rng(0).normal(size=(3, 1000, 10))
    labels_N = np.arange(1000) % 10
    baseline_NK = 100 * np.eye(10)[labels_N] + noise_3NK[0]

    def with_noise(logits_NK: np.ndarray, noise_NK: np.ndarray, db: float) -> np.ndarray:
        return logits_NK + noise_NK * np.linalg.norm(logits_NK) / np.linalg.norm(noise_NK) * 10 ** (-db / 20)

    reference_NK = with_noise(baseline_NK, noise_3NK[1], rounding_db)
    engine_NK = with_noise(reference_NK, noise_3NK[2], engine_db)
    _, flags = compared(engine_NK, labels_N, baseline_NK, reference_NK, tmp_path, scheme=scheme)
    assert flags == (["diverges"] if flagged else [])


@pytest.mark.parametrize(("others", "flagged"), [(0, False), (5, False), (9, True)])
def test_classes_differ_if_the_images_are_enough_to_say_so(others: int, flagged: bool, tmp_path: Path) -> None:
    labels_N = np.arange(800) % 2
    reference_NK = 100.0 * np.eye(2)[labels_N]
    engine_NK = reference_NK.copy()
    for image in range(800 - others, 800):
        reference_NK[image], engine_NK[image] = (50.1, 50.0), (50.0, 50.1)
    metrics, flags = compared(engine_NK, labels_N, reference_NK, reference_NK, tmp_path)
    assert metrics["parity_agreement"] == 1 - others / 400 and metrics["parity_sqnr_db"] > 40
    assert flags == (["diverges"] if flagged else [])
