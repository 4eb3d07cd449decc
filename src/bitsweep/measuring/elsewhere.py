"""What another machine computed, judged here as if it had been computed here."""

import json
from pathlib import Path

import numpy as np

from bitsweep.errors import CellFailed
from bitsweep.graphs.program import inference_fn
from bitsweep.measuring import accuracy, latency, saturation
from bitsweep.measuring.passes import Subject, write_pass
from bitsweep.results import LATENCY_SAMPLES, Array

#: Logits that the probe should give, beside its images.
_EXPECTED = "expected.npy"
#: Flag of a processor that was slowed down while it measured.
THROTTLED = "throttled"


def write_probe(subject: Subject, scratch: Path) -> Path:
    """Lower the program whose sums may saturate, with its images and what they should give."""
    program, images = saturation.largest_products(subject.scheme)
    (folder := scratch / "probe").mkdir()
    subject.backend.lower(program, folder)
    np.save(folder / "probe.npy", images)
    np.save(scratch / _EXPECTED, inference_fn(program)(images))
    return folder


def judge(subject: Subject, material: accuracy.Material, results: Path, *, probe: Path | None, folder: Path) -> None:
    """Write all passes of a measurement from the files that came back.

    Raises:
        CellFailed: they are not what was asked for.
    """
    classes, chosen = len(material.splits.classes), len(material.validation_N)
    try:
        notes = json.loads((results / "notes.json").read_text())
        logits_NK = _loaded(results / "test.npy", (len(material.splits.test), classes))
        said_N = np.empty(0, np.int64)
        if chosen:
            said_N = _loaded(results / "validation.npy", (chosen, classes)).argmax(1)
        wrong = probe is not None and saturation.are_wrong(
            np.load(results / "probe.npy", allow_pickle=False), np.load(probe.parent / _EXPECTED)
        )
        (folder / LATENCY_SAMPLES).write_bytes((results / LATENCY_SAMPLES).read_bytes())
        metrics, flags, details = latency.figures_of(notes, folder, subject)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CellFailed(f"target={subject.target.name} sent other results than were asked for: {error}") from error
    accuracy.judge(subject, material, logits_NK=logits_NK, said_N=said_N, saturates=wrong, folder=folder)
    findings = latency.cautions(flags, details)
    if notes.get("throttled"):
        flags.append(THROTTLED)
        findings.append("the processor was slowed down while it measured: cool it, and measure again (remeasure=all)")
    details["machine"] = notes.get("machine", {})
    write_pass(folder, "measure_latency", metrics, flags, details, findings=findings)
    if "peak_rss_mb" in notes:
        write_pass(folder, "measure_memory", {"peak_rss_mb": float(notes["peak_rss_mb"])}, [], {})


def _loaded(file: Path, shape: tuple[int, ...]) -> Array:
    logits: Array = np.load(file, allow_pickle=False)
    if logits.shape != shape:
        raise ValueError(f"{file.name} is {logits.shape}, not {shape}")
    return logits
