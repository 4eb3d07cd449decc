"""Runs the artifact, machine code that PyTorch's compiler made for one kind of CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


def load(folder: Path, about: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """The function from float32 [N, 3, S, S] to logits [N, K]."""
    torch.set_num_threads(about["threads"])
    compiled = torch._inductor.aoti_load_package(str(folder / "model.pt2"))
    return lambda images: compiled(torch.from_numpy(images)).numpy()
