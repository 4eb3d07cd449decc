"""Accuracy, parity with the reference, size, and the kernels that were executed."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitsweep import stats
from bitsweep.config.precision import Grid
from bitsweep.errors import BitsweepError
from bitsweep.measuring.causes import why_less_accurate
from bitsweep.measuring.passes import Subject, stored_bytes, write_pass
from bitsweep.measuring.scores import scores
from bitsweep.results import (
    AT_CHANCE,
    MOSTLY_FLOAT,
    ROUNDED_ON_FEWER,
    USUAL_CALIBRATION,
    Array,
    Compressed,
    OpProfile,
    Shape,
    Splits,
    Table,
    Trained,
)

#: Sizes below this share of fp32 need no explanation for 8-bit weights.
_EXPLAINED_SIZE_RATIO = 0.35
#: Points of top-1 that are lost without an explanation.
_EXPLAINED_DROP_PP = 0.5
#: Images below which a calibration says so.
_FEW_IMAGES = 16
#: Stored images that are taken into memory at a time.
_BLOCK = 512
#: Share of images on which an artifact and the reference choose the same class, if it is the model that was meant.
LEAST_AGREEMENT = 0.99
#: Parity with the reference in dB below which it is not, and from which on it is; sums that saturate leave 17.
LEAST_SQNR_DB, SUFFICIENT_SQNR_DB = 20.0, 25.0
#: The least that float32 computed in another order leaves: a thousandth, where rounding alone is a ten-millionth.
LEAST_FLOAT_SQNR_DB = 60.0
#: By how many dB an engine may be further from the reference than the reference is from the float network, where both
#: compute in half precision: they round in different places, so that their noise adds up (3 dB), and varies (3 dB).
HALVES_APART_DB = 6.0


@dataclass(frozen=True, kw_only=True)
class Material:
    """What an artifact is judged by.

    Attributes:
        splits: what is chosen among cells is not to be chosen on the test images, so that validation images count too.
        validation_N: numbers of the validation images to classify, int64 in rising order.
        batches: ``(images, batch=N)`` gives stored images as the network takes them, N at a time.
        trained, compressed: the baseline and the reference, with what they make of the test images.
    """

    splits: Splits
    validation_N: Array
    batches: Callable[..., Iterable[Any]]
    trained: Trained
    compressed: Compressed


def inspect(subject: Subject, *, input_shape: Shape, compressed: Compressed, folder: Path) -> None:
    """Record what the files say of an artifact that no engine can run here; nothing is computed."""
    images = np.zeros((1, *input_shape), np.float32)
    kernels = subject.backend.profile(subject.artifact, images, threads=subject.threads)
    table = Table(
        name="kernels",
        columns=("kernel", "operation", "arithmetic", "multiply-accumulates"),
        # As text, because engines make up names of fused kernels that leave no room for a picture.
        rows=tuple((each.name, each.op, "integer" if each.integer else "float", str(each.macs)) for each in kernels),
    )
    details, metrics, flags = _size(subject, compressed)
    more_details, more_metrics, more_flags = _kernels(subject, kernels)
    flags = ["not run", *flags, *more_flags]
    write_pass(folder, "inspect", metrics | more_metrics, flags, details | more_details, tables=[table])


def evaluate(subject: Subject, material: Material, *, saturates: bool, folder: Path) -> None:
    """Measure top-1 on the whole test split from the artifact itself, and compare it with baseline and reference.

    Args:
        saturates: whether the engine's kernels were seen to fail on the largest sums of the scheme.
        folder: gets ``logits.npy`` of the test images and ``examples.npy`` for the other passes.
    """
    infer, size = subject.backend.load(subject.artifact, threads=subject.threads), subject.protocol.eval_batch
    batches, chosen_N = material.batches, material.validation_N
    logits = [infer(np.asarray(images)) for images in batches(material.splits.test.images, batch=size)]
    parts = np.split(chosen_N, range(_BLOCK, len(chosen_N), _BLOCK)) if len(chosen_N) else []
    images = (batch for part in parts for batch in batches(material.splits.val.images[part], batch=size))
    said = [infer(np.asarray(each)).argmax(1) for each in images]
    said_N = np.concatenate(said) if said else np.empty(0, np.int64)
    judge(subject, material, logits_NK=np.concatenate(logits), said_N=said_N, saturates=saturates, folder=folder)


def judge(
    subject: Subject, material: Material, *, logits_NK: Array, said_N: Array, saturates: bool, folder: Path
) -> None:
    """Write what follows from what an artifact computed.

    Args:
        logits_NK: of the test images.
        said_N: classes of the validation images.
        saturates, folder: see `evaluate`.
    """
    test, compressed = material.splits.test, material.compressed
    logits_NK = logits_NK.astype(np.float32)
    np.save(folder / "logits.npy", logits_NK)
    largest = max(subject.protocol.batch_sizes)
    repeated = test.images[np.arange(largest) % len(test)]
    (examples,) = (np.asarray(images) for images in material.batches(repeated, batch=largest))
    np.save(folder / "examples.npy", examples)

    metrics, flags = compare(logits_NK, test.labels, material.trained.test_logits_NK, compressed, subject)
    findings: list[str] = []
    tables: list[Table] = []
    if "diverges" in flags and subject.target.here:
        findings, tables = _where_it_diverges(subject, compressed, examples)
    if len(said_N):
        chosen_N = material.validation_N
        before_N = material.trained.validation_right_N[chosen_N]
        right_N = said_N == material.splits.val.labels[chosen_N]
        metrics |= {
            "validation_images": float(len(right_N)),
            "validation_top1": float(right_N.mean()),
            "validation_drop_pp": 100 * float(before_N.mean() - right_N.mean()),
            "validation_flips": float((before_N != right_N).sum()),
        }
    if compressed.calibrated_on:
        metrics["calibration_images"] = float(compressed.calibrated_on)
    findings += _about_calibration(compressed, material.splits.calibration_source)
    if metrics["top1_drop_pp"] >= _EXPLAINED_DROP_PP:
        findings += why_less_accurate(compressed.tables)
    if saturates:
        flags.append("saturates")
        findings.append("sums of the largest products saturate in this engine's kernels on this CPU")
    kernels = subject.backend.profile(subject.artifact, examples[:1], threads=subject.threads)
    details: dict[str, Any] = {}
    for measured, more_metrics, more_flags in (_size(subject, compressed), _kernels(subject, kernels)):
        details |= measured
        metrics |= more_metrics
        flags += more_flags
    write_pass(folder, "evaluate", metrics, flags, details, findings=findings, tables=tables)


def _about_calibration(compressed: Compressed, source: str) -> list[str]:
    """What is unusual about the images that a method was calibrated on."""
    count, few, findings = compressed.calibrated_on, 0 < compressed.calibrated_on < _FEW_IMAGES, list[str]()
    if few or (count and source != USUAL_CALIBRATION):
        advice = (
            ": ranges are those of few pictures; raise method.calibration_images, or give more of them" if few else ""
        )
        findings.append(f"calibrated on {count} {source}{advice}")
    for table in compressed.tables:
        if table.name == ROUNDED_ON_FEWER:
            (_, watched), (_, fitted) = table.rows
            findings.append(
                f"activations were watched on {watched} images, and layers rounded on {fitted} of them, because what "
                "layers read of more does not fit in memory"
            )
    return findings


def compare(
    logits_NK: Array, labels_N: Array, baseline_NK: Array, compressed: Compressed, subject: Subject
) -> tuple[dict[str, float], list[str]]:
    """Accuracy metrics of logits against labels, fp32 baseline and reference, and the flags that follow."""
    n = len(labels_N)
    correct = logits_NK.argmax(1) == labels_N
    baseline_correct = baseline_NK.argmax(1) == labels_N
    lost, gained = stats.paired_counts(baseline_correct, correct)
    sampled_NK, reference_NK = logits_NK[compressed.reference_N], compressed.reference_NK
    low, high = stats.wilson_interval(int(correct.sum()), n, subject.protocol.confidence)
    metrics = {
        "top1": float(correct.mean()),
        "top1_low": low,
        "top1_high": high,
        "test_images": float(n),
        "top1_drop_pp": 100 * float(baseline_correct.mean() - correct.mean()),
        "flips": float(lost + gained),
        "mcnemar_p": stats.mcnemar_exact_p(lost, gained),
        "agreement": stats.agreement(baseline_NK, logits_NK),
        "sqnr_db": stats.sqnr_db(baseline_NK, logits_NK),
        "mean_kl": stats.mean_kl(baseline_NK, logits_NK),
        "parity_agreement": stats.agreement(reference_NK, sampled_NK),
        "parity_sqnr_db": stats.sqnr_db(reference_NK, sampled_NK),
    }
    flags = []
    baseline_low, _ = stats.wilson_interval(int(baseline_correct.sum()), n, subject.protocol.confidence)
    if baseline_low <= np.bincount(labels_N).max() / n:
        flags.append(AT_CHANCE)
    if np.isfinite(logits_NK).all():
        metrics |= scores(logits_NK, labels_N)
    else:
        flags.append("non-finite logits")
    meant_NK = baseline_NK[compressed.reference_N]
    halves = subject.scheme.arithmetic in ("float16", "bfloat16")
    if _diverges(sampled_NK, meant_NK, reference_NK, halves=halves, confidence=subject.protocol.confidence):
        flags.append("diverges")
    return metrics, flags


def _diverges(logits_NK: Array, baseline_NK: Array, reference_NK: Array, *, halves: bool, confidence: float) -> bool:
    """Whether an engine computes something else than the reference.

    Sums in another order put values between two codes on the other one, and what follows rounds anew. That adds less
    noise than quantization did: an engine may be further from the reference than ``SUFFICIENT_SQNR_DB`` only where the
    reference itself is further than that from the float network, and than the engine is from it. In half precision the
    reference rounds after every operation and engines after some, see ``HALVES_APART_DB``. Classes differ on more
    images than is allowed if the interval says so.
    """
    parity_db, reference_db = stats.sqnr_db(reference_NK, logits_NK), stats.sqnr_db(baseline_NK, reference_NK)
    n = len(logits_NK)
    same = round(n * stats.agreement(reference_NK, logits_NK))
    most = stats.wilson_interval(same, n, confidence)[1]
    allowed_db = reference_db - HALVES_APART_DB if halves else reference_db
    limit_db = min(max(allowed_db, LEAST_SQNR_DB), SUFFICIENT_SQNR_DB)
    return most < LEAST_AGREEMENT or not parity_db >= limit_db


def _where_it_diverges(subject: Subject, compressed: Compressed, examples: Array) -> tuple[list[str], list[Table]]:
    """The first layer whose values are too far from the reference's, and how far those of all layers are."""
    from bitsweep.graphs.program import load_program
    from bitsweep.measuring.parity import divergence, first_fault

    try:
        program = load_program(compressed.program)
        table = divergence(program, subject.backend, examples[:8], threads=subject.threads)
    except BitsweepError as error:
        return [f"where the engine leaves the reference cannot be seen: {error}"], []
    fault = first_fault(table, least_sqnr_db=LEAST_SQNR_DB)
    return [fault or "the engine agrees with the reference when it is asked for the values in between"], [table]


def _size(subject: Subject, compressed: Compressed) -> tuple[dict[str, Any], dict[str, float], list[str]]:
    """Bytes of the artifact as stored, and the bound that parameters x bits sets."""
    stored, twin = (stored_bytes(folder, subject.backend) for folder in (subject.artifact, subject.twin))
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


def _kernels(subject: Subject, kernels: Sequence[OpProfile]) -> tuple[dict[str, Any], dict[str, float], list[str]]:
    """Share of multiply-accumulates that the engine executed on integers, and what it left in float."""
    macs = sum(kernel.macs for kernel in kernels)
    share = sum(kernel.macs for kernel in kernels if kernel.integer) / macs if macs else 0.0
    islands = [f"{kernel.op} {kernel.name}" for kernel in kernels if kernel.macs and not kernel.integer]
    details = {"macs": macs, "float_islands": islands if subject.scheme.arithmetic == "integer" else []}
    flags = [MOSTLY_FLOAT] if subject.scheme.arithmetic == "integer" and share < 0.5 else []
    return details, {"int8_mac_share": share}, flags
