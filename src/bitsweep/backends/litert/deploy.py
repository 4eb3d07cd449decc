"""Runs the artifact with LiteRT."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def load(folder: Path, about: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """The function from float32 [N, C, H, W] to logits [N, K]."""
    from batches import in_batches_of

    return in_batches_of(1, inference_fn(interpreter(folder / "model.tflite", threads=about["threads"])))


def interpreter(path: Path, *, threads: int) -> Interpreter:
    """A file, ready to run on so many threads."""
    ready = Interpreter(model_path=str(path), num_threads=threads)
    ready.allocate_tensors()
    return ready


def inference_fn(ready: Interpreter) -> Callable[[np.ndarray], np.ndarray]:
    """A file as a function of one image."""
    (images,), (logits,) = ready.get_input_details(), ready.get_output_details()

    def run(image: np.ndarray) -> np.ndarray:
        ready.set_tensor(images["index"], image)
        ready.invoke()
        return ready.get_tensor(logits["index"])

    return run
