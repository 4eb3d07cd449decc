"""Baselines as they are read back, without PyTorch."""

import json
from pathlib import Path

import numpy as np

from bitsweep.results import Epoch, Trained


def load_trained(folder: Path) -> Trained:
    """Read back what `bitsweep.training.baseline` wrote; the checkpoint itself stays on disk."""
    about = json.loads((folder / "history.json").read_text())
    history = tuple(Epoch(**epoch) for epoch in about["epochs"])
    return Trained(
        checkpoint=folder / "checkpoint.pt",
        history=history,
        best_epoch=about["best_epoch"],
        val_top1=about["val_top1"],
        device=about["device"],
        test_logits_NK=np.load(folder / "test_logits.npy"),
        validation_right_N=np.load(folder / "validation_right.npy"),
        notes=tuple(about["notes"]),
    )
