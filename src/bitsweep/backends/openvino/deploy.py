"""Runs the artifact with OpenVINO."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino


def load(folder: Path, about: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """The function from float32 [N, 3, S, S] to logits [N, K]."""
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": about["threads"],
    }
    compiled = openvino.Core().compile_model(folder / "model.onnx", "CPU", settings)
    return lambda images: compiled([images])[0]
