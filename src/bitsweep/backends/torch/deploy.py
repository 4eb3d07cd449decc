"""Runs the artifact with PyTorch, operation by operation; ``archive.py`` reads it as data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


def load(folder: Path, about: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """The function from float32 [N, 3, S, S] to logits [N, K]."""
    from archive import load_archive

    torch.set_num_threads(about["threads"])
    module = load_archive(folder / "program.pt2").module()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(images)).numpy()

    return run
