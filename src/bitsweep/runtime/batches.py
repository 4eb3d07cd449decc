"""Batches of any size for what takes a fixed number of images at a time. A bundle ships this file itself."""

from collections.abc import Callable
from typing import Any

import numpy as np

Infer = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


def in_batches_of(size: int, infer: Infer) -> Infer:
    """A function of any number of images, of one that takes a fixed number at a time; the last are filled up."""

    def run(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        missing = -len(images) % size
        filled = np.concatenate([images, images[:1].repeat(missing, 0)]) if missing else images
        parts = [infer(filled[start : start + size]) for start in range(0, len(filled), size)]
        return (parts[0] if len(parts) == 1 else np.concatenate(parts))[: len(images)]

    return run
