"""Peak memory of an artifact."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np

from bitsweep.measuring.passes import Subject, write_pass
from bitsweep.measuring.resident import peak_mb, resident_mb
from bitsweep.runtime import gpu


def measure_memory(subject: Subject, *, examples: Path, folder: Path) -> None:
    """Measure the peak memory of a new interpreter that imports the engine, loads the artifact and runs it once.

    Args:
        examples: ``.npy`` file of float32 images [N, 3, H, W].
    """
    # A plug-in may lie where only this process would find it.
    found = f"import pickle, sys; sys.path[:] = {sys.path}; from {print_peaks.__module__} import {print_peaks.__name__}"
    script = f"{found} as work; work(**pickle.load(sys.stdin.buffer))"
    request = {"subject": subject, "examples": examples}
    finished = subprocess.run([sys.executable, "-c", script], input=pickle.dumps(request), capture_output=True)
    if finished.returncode:
        sys.stderr.buffer.write(finished.stderr)
        raise RuntimeError(f"the process that measures memory ended with {finished.returncode}")
    write_pass(folder, "measure_memory", json.loads(finished.stdout.splitlines()[-1]), [], {})


def print_peaks(subject: Subject, examples: Path) -> None:
    """Load and run an artifact in this process, and print by how many MB its resident set grew at most.

    On a GPU also by how many the memory in use grew there, which engines keep as long as they are loaded.
    """
    images, on_gpu = np.load(examples)[: subject.protocol.batch_sizes[0]], subject.backend.on_gpu
    before = resident_mb()
    before_mb = gpu.used_mb() if on_gpu else 0.0
    infer = subject.backend.load(subject.artifact, threads=subject.threads)
    infer(images)
    peaks = {"peak_rss_mb": peak_mb() - before}
    if on_gpu:
        peaks["peak_device_mb"] = gpu.used_mb() - before_mb
    print(json.dumps(peaks))
