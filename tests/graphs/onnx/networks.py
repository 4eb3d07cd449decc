"""Small networks and their ONNX files, and what ONNX Runtime says of these."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from bitsweep.graphs.onnx.network import for_any_batch, network_of
from bitsweep.results import Array

SIZE = 16


class Classifier(nn.Module):
    """Convolutions, one of them depthwise, with three activation functions, a skip and two linear layers."""

    def __init__(self, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU6(), nn.Conv2d(8, 16, 1))
        self.skip = nn.Conv2d(8, 16, 1)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Sequential(nn.Linear(64, 16), nn.SiLU(), nn.Linear(16, classes))

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = torch.relu(self.block(x) + self.skip(x))
        logits: Tensor = self.head(self.pool(x).view(x.size(0), -1))
        return logits


def export(
    network: nn.Module, path: Path, *, batch: int | None = None, shape: tuple[int, ...] = (3, SIZE, SIZE)
) -> None:
    """Write a network as PyTorch does, for any number of images or for one."""
    dynamic = None if batch else ({0: torch.export.Dim("batch")},)
    torch.onnx.export(
        network.eval(), (torch.randn(batch or 2, *shape),), path, dynamo=True, dynamic_shapes=dynamic, verbose=False,
        external_data=False, input_names=["pixels"], output_names=["scores"],
    )  # fmt: skip


def by_onnxruntime(path: Path, images: Array) -> Array:
    """The first output, for the images together, or one by one where the file takes one."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options)
    (taken,) = session.get_inputs()
    number = taken.shape[0] if isinstance(taken.shape[0], int) else len(images)
    parts = [session.run(None, {taken.name: images[at : at + number]})[0] for at in range(0, len(images), number)]
    return np.concatenate(parts)


def difference(path: Path, shape: tuple[int, int, int] = (3, SIZE, SIZE), *, images: int = 3) -> float:
    """The largest between PyTorch and ONNX Runtime, relative to the largest value."""
    pixels = np.random.default_rng(0).standard_normal((images, *shape), dtype=np.float32)
    meant = by_onnxruntime(path, pixels)
    with torch.no_grad():
        given = for_any_batch(network_of(path), shape).eval()(torch.from_numpy(pixels)).numpy()
    assert given.shape == meant.shape
    assert np.ptp(meant) > 0
    return float(np.abs(given - meant).max() / np.abs(meant).max())
