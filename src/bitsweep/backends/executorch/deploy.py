"""Runs the artifact with ExecuTorch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import executorch.kernels.quantized  # noqa: F401  (kernels of what XNNPACK leaves over)
import numpy as np
import torch
from executorch.extension.pybindings import portable_lib


def load(folder: Path, about: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """The function from float32 [N, 3, S, S] to logits [N, K]."""
    portable_lib._unsafe_reset_threadpool(about["threads"])
    module = portable_lib._load_for_executorch(str(folder / "model.pte"))
    return lambda images: module.forward([torch.from_numpy(images)])[0].numpy()
