"""A small network with the structures that lowering must get right, and its programs at every precision."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.export import ExportedProgram

from bitsweep.artifacts import Split, Splits
from bitsweep.axes import Backend, Precision, Scheme
from bitsweep.environment import current_cpu, version_of
from bitsweep.errors import MissingPackage
from bitsweep.methods.none import NoCompression
from bitsweep.methods.ptq import PostTrainingQuantization

SIZE = 32
CLASSES = 10
#: Multiply-accumulates of one image through `SmallNet`, by hand: output pixels x output channels x products of each.
MACS = 16 * 16 * 16 * (3 * 3 * 3) + 8 * 8 * 16 * (1 * 3 * 3) + 8 * 8 * 32 * 16 + 8 * 8 * 32 * (32 * 3 * 3) + 10 * 32


class SmallNet(torch.nn.Module):
    """Strided, depthwise, pointwise and residual convolutions, with pooling in between and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
            torch.nn.BatchNorm2d(16),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.depthwise = torch.nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = torch.nn.Conv2d(16, 32, 1)
        self.residual = torch.nn.Conv2d(32, 32, 3, padding=1)
        self.head = torch.nn.Linear(32, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.pointwise(self.depthwise(self.stem(images))))
        x = torch.relu(x + self.residual(x))
        return self.head(torch.flatten(torch.nn.functional.adaptive_avg_pool2d(x, 1), 1))


def _splits() -> Splits:
    tiles = np.random.default_rng(0).integers(0, 256, (64, SIZE // 4, SIZE // 4, 3), dtype=np.uint8)
    split = Split(images=np.kron(tiles, np.ones((1, 4, 4, 1), np.uint8)), labels=np.arange(64) % CLASSES)
    classes = tuple(map(str, range(CLASSES)))
    mean_C, std_C = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    return Splits(train=split, val=split, test=split, classes=classes, mean_C=mean_C, std_C=std_C, fingerprint="")


@cache
def _program(scheme: Scheme) -> ExportedProgram:
    torch.manual_seed(0)
    network = SmallNet()
    if scheme.weights == scheme.activations == "float32":
        method = NoCompression(name="none")
    else:
        method = PostTrainingQuantization(name="ptq", calibration_images=32)
    return method.compress(network.eval(), _splits(), image_size=SIZE, scheme=scheme, seed=0).program


@pytest.fixture(scope="session")
def program_of() -> Callable[[Scheme], ExportedProgram]:
    """The small network's program in a scheme."""
    return _program


@pytest.fixture(scope="session")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Backend, Precision], tuple[ExportedProgram, Path]]:
    """The small network's program for a backend at a precision, and its artifact, which is made once."""

    @cache
    def lower(backend: Backend, precision: Precision) -> tuple[ExportedProgram, Path]:
        if version_of(backend.package) == "absent":
            pytest.skip(str(MissingPackage(backend.package, backend.extra)))
        if reason := backend.unsupported(precision) or backend.cannot_run():
            pytest.skip(reason)
        program = _program(backend.scheme(precision, current_cpu()))
        folder = tmp_path_factory.mktemp(f"{backend.name}-{precision.name}-")
        backend.lower(program, folder)
        return program, folder

    return lower


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """float32 images [5, 3, 32, 32]."""
    return np.random.default_rng(1).standard_normal((5, 3, SIZE, SIZE)).astype(np.float32)


@pytest.fixture(scope="session")
def macs() -> int:
    """Multiply-accumulates of one image through the small network."""
    return MACS


@pytest.fixture(scope="session")
def fp32() -> Precision:
    return Precision(name="fp32", weights="float32", activations="float32")
