"""Rounding on a real ResNet-20 for CIFAR-10, whose top-1 under each method is known."""

import functools
from pathlib import Path

import numpy as np
import pytest

from bitsweep.config.precision import Grid, Scheme
from bitsweep.data.preprocessing import normalized_for_imagenet, preprocessed
from bitsweep.data.splits import make_splits
from bitsweep.datasets.npz import Npz
from bitsweep.graphs.program import logits_of
from bitsweep.models.cifar_resnet import CifarResNet
from bitsweep.results import Array, Splits
from bitsweep.training.network import load_weights
from tests.methods.test_rounding import method

pytestmark = pytest.mark.slow

#: Method, its knobs, bits and granularity of the weights -> top-1 in percent of a plain implementation.
KNOWN = [
    ("ptq", {}, 8, False, 91.6),
    ("ptq", {"weight_range": "std", "guard": False}, 8, False, 81.7),
    ("ptq", {}, 4, False, 85.3),
    ("ptq", {}, 4, True, 90.4),
    ("ptq", {}, 3, True, 73.0),
    ("msq", {"alphabet": "zhang"}, 4, True, 83.5),
    ("msq", {"alphabet": "zhang"}, 3, True, 73.9),
    ("gpfq", {"alphabet": "zhang"}, 4, True, 90.7),
    ("gpfq", {"alphabet": "zhang"}, 3, True, 89.8),
]


@functools.cache
def load(sample_data: Path) -> Splits:
    raw = Npz(name="cifar10", root=str(sample_data / "cifar10" / "cifar10.npz")).decode()
    return normalized_for_imagenet(make_splits(raw, val_share=0.1, seed=0))


@pytest.fixture(scope="module")
def splits(sample_data: Path) -> Splits:
    return load(sample_data)


@functools.cache
def logits(sample_data: Path, name: str, bits: int, per_channel: bool = True, **knobs: object) -> Array:
    splits = load(sample_data)
    network = CifarResNet(name="resnet20", depth=20, image_size=32).build(10)
    load_weights(network, sample_data / "weights" / "resnet20_cifar10.pt")
    grid = Grid(bits=bits, signed=True, symmetric=True, per_channel=per_channel)
    scheme = Scheme(weights=grid, activations="float32", arithmetic="simulated")
    made = method(name, calibration_images=128, calibration_batch=32, **knobs)
    result = made.compress(network.eval(), splits, input_shape=(3, 32, 32), scheme=scheme, seed=0)
    images = preprocessed(splits.test.images, splits, input_shape=(3, 32, 32), batch=250)
    return logits_of(result.program, map(np.asarray, images))


@pytest.mark.parametrize(("name", "knobs", "bits", "per_channel", "known"), KNOWN)
def test_top1_is_what_is_known(
    name: str, knobs: dict[str, object], bits: int, per_channel: bool, known: float, sample_data: Path, splits: Splits
) -> None:
    found = logits(sample_data, name, bits, per_channel, **knobs)
    top1 = 100 * (found.argmax(1) == splits.test.labels).mean()
    two_errors = 200 * (known / 100 * (1 - known / 100) / 1000) ** 0.5
    assert top1 > known - two_errors
    if name != "gpfq":  # what draws nothing at random
        assert top1 < known + two_errors


@pytest.mark.parametrize(("name", "bits"), [("gptq", 4), ("gptq", 3), ("gpfq", 3), ("gpfq", 2)])
def test_what_looks_at_data_beats_nearest_rounding(name: str, bits: int, sample_data: Path, splits: Splits) -> None:
    """Closer to the float network's distribution, image by image: a paired t-test, 3.3 being p = 0.001."""
    network = CifarResNet(name="resnet20", depth=20, image_size=32).build(10)
    load_weights(network, sample_data / "weights" / "resnet20_cifar10.pt")
    import torch

    images = preprocessed(splits.test.images, splits, input_shape=(3, 32, 32), batch=250)
    with torch.no_grad():
        p = torch.cat([network.eval()(batch) for batch in images]).double().log_softmax(1)

    def divergence(name: str) -> torch.Tensor:
        q = torch.from_numpy(logits(sample_data, name, bits, True)).double().log_softmax(1)
        return (p.exp() * (p - q)).sum(1)

    gained = divergence("ptq") - divergence(name)
    assert float(gained.mean() / (gained.std() / len(gained) ** 0.5)) > 3.3
