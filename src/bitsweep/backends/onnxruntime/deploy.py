"""Runs the artifact with ONNX Runtime on a CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


def load(folder: Path, about: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """The function from float32 [N, C, H, W] to logits [N, K]."""
    from batches import in_batches_of

    options = session_options(threads=about["threads"], optimization=about["backend"]["optimization"])
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    number = session.get_inputs()[0].shape[0]

    def run(images: np.ndarray) -> np.ndarray:
        return session.run(["logits"], {"images": images})[0]

    return in_batches_of(number, run) if isinstance(number, int) else run


def session_options(*, threads: int, optimization: str) -> onnxruntime.SessionOptions:
    """Settings of every session: so many threads, of which none spins between runs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = {
        "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
        "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    }[optimization]
    options.log_severity_level = 3
    # Threads wait actively within a run, which is fast, and sleep after it: another session may be running then.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Else signed activations become unsigned ones on x86: their products saturate, and a ReLU is more than a clamp.
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    return options
