"""A small network with the structures that lowering must get right, and its programs at every precision."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.export import ExportedProgram

from bitsweep.config.backend import Backend
from bitsweep.config.precision import Precision, Scheme
from bitsweep.data.preprocessing import normalized_for_imagenet, preprocessed
from bitsweep.data.splits import make_splits
from bitsweep.datasets.npz import Npz
from bitsweep.errors import MissingPackage
from bitsweep.methods.none import NoCompression
from bitsweep.methods.ptq import PostTrainingQuantization
from bitsweep.models.cifar_resnet import CifarResNet
from bitsweep.results import Split, Splits
from bitsweep.runtime.environment import current_cpu, version_of
from bitsweep.training.network import load_weights

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
    return method.compress(network.eval(), _splits(), input_shape=(3, SIZE, SIZE), scheme=scheme, seed=0).program


@pytest.fixture(scope="session")
def program_of() -> Callable[[Scheme], ExportedProgram]:
    """The small network's program in a scheme."""
    return _program


def skip_unless_lowered(backend: Backend, precision: Precision) -> None:
    """Skip a test, with the reason, where a backend makes no artifacts of a precision."""
    if version_of(backend.package) == "absent":
        pytest.skip(str(MissingPackage(backend.package, backend.extra)))
    if reason := backend.unsupported(precision):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Backend, Precision], tuple[ExportedProgram, Path]]:
    """The small network's program for a backend at a precision, and its artifact, which is made once."""

    @cache
    def lower(backend: Backend, precision: Precision) -> tuple[ExportedProgram, Path]:
        skip_unless_lowered(backend, precision)
        if reason := backend.cannot_run():
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


@pytest.fixture(scope="session")
def resnet20_of(sample_data: Path) -> Callable[[Scheme], ExportedProgram]:
    """The program of ResNet-20 with weights for CIFAR-10, in a scheme."""
    network = CifarResNet(name="resnet20", depth=20, image_size=SIZE).build(CLASSES)
    load_weights(network, sample_data / "weights" / "resnet20_cifar10.pt")
    method = PostTrainingQuantization(name="ptq", calibration_images=128, calibration_batch=32)

    @cache
    def program(scheme: Scheme) -> ExportedProgram:
        fresh = copy.deepcopy(network).eval()
        return method.compress(fresh, _cifar10(sample_data), input_shape=(3, SIZE, SIZE), scheme=scheme, seed=0).program

    return program


@pytest.fixture(scope="session")
def cifar10_batches(sample_data: Path) -> list[np.ndarray]:
    """400 test images of CIFAR-10 as ResNet-20 takes them, float32 [up to 150, 3, 32, 32]."""
    splits = _cifar10(sample_data)
    return list(map(np.asarray, preprocessed(splits.test.images[:400], splits, input_shape=(3, SIZE, SIZE), batch=150)))


@cache
def _cifar10(sample_data: Path) -> Splits:
    raw = Npz(name="cifar10", root=str(sample_data / "cifar10" / "cifar10.npz")).decode()
    return normalized_for_imagenet(make_splits(raw, val_share=0.1, seed=0))


class Transposed(torch.nn.Module):
    """A transposed and a grouped transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = torch.nn.ConvTranspose2d(3, 4, 3, stride=2)
        self.grouped = torch.nn.ConvTranspose2d(4, 6, 2, groups=2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.grouped(torch.relu(self.plain(images))).flatten(1)


class Determinant(torch.nn.Module):
    """What ONNX has a name for, and engines no kernel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.linalg.det(images)


@pytest.fixture(scope="session")
def transposed() -> tuple[ExportedProgram, int]:
    """A program with transposed convolutions of images [N, 3, 5, 5], and its multiply-accumulates for one."""
    return _exported(Transposed().eval(), size=5), 3 * 5 * 5 * 4 * 3 * 3 + 4 * 11 * 11 * 3 * 2 * 2


@pytest.fixture(scope="session")
def determinant() -> ExportedProgram:
    """A program that no engine of ONNX files takes."""
    return _exported(Determinant(), size=4)


def _exported(network: torch.nn.Module, *, size: int) -> ExportedProgram:
    dynamic = ({0: torch.export.Dim("batch", min=1)},)
    return torch.export.export(network, (torch.ones(2, 3, size, size),), dynamic_shapes=dynamic)
