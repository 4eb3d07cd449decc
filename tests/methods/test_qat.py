"""Training with quantization, on a network that has learned something."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from bitsweep.config.method import Method
from bitsweep.config.precision import Grid, Scheme
from bitsweep.config.recipe import Recipe
from bitsweep.data.preprocessing import preprocess
from bitsweep.data.splits import make_splits
from bitsweep.datasets.digits import Digits
from bitsweep.graphs.program import logits_of
from bitsweep.methods.ptq import PostTrainingQuantization
from bitsweep.methods.qat import QuantizationAwareTraining
from bitsweep.results import Compression, Splits
from bitsweep.training.loop import train

pytestmark = pytest.mark.slow

SIZE = 8
QAT = QuantizationAwareTraining(name="qat", epochs=4, lr=3e-3, calibration_images=64)


@pytest.fixture(scope="module")
def digits() -> Splits:
    return make_splits(Digits(name="digits").decode(), val_share=0.1, seed=0)


@pytest.fixture(scope="module")
def network(digits: Splits) -> torch.nn.Module:
    torch.manual_seed(0)
    made = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 16, 3, padding=1, stride=2, groups=2),
        torch.nn.BatchNorm2d(16),
        torch.nn.Hardswish(),
        torch.nn.Flatten(),
        torch.nn.Linear(256, 10),
    )
    recipe = Recipe(name="test", epochs=8, max_steps=1000, lr=0.01)
    train(made, digits, recipe=recipe, input_shape=(3, SIZE, SIZE), seed=0, title="test")
    return made.eval()


def scheme(bits: int) -> Scheme:
    return Scheme(
        weights=Grid(bits=bits, signed=True, symmetric=True, per_channel=True),
        activations=Grid(bits=8, signed=False, symmetric=False),
        arithmetic="simulated",
    )


def compressed(method: Method, network: torch.nn.Module, splits: Splits, wanted: Scheme) -> Compression:
    return method.compress(copy.deepcopy(network), splits, input_shape=(3, SIZE, SIZE), scheme=wanted, seed=0)


def top1(result: Compression, splits: Splits) -> float:
    images = preprocess(splits.test.images, input_shape=(3, SIZE, SIZE), mean_C=splits.mean_C, std_C=splits.std_C)
    return float((logits_of(result.program, [images.numpy()]).argmax(1) == splits.test.labels).mean())


@pytest.mark.parametrize("learned_scales", [False, True])
def test_it_brings_back_what_rounding_loses(learned_scales: bool, network: torch.nn.Module, digits: Splits) -> None:
    nearest = top1(compressed(PostTrainingQuantization(name="ptq"), network, digits, scheme(2)), digits)
    made = dataclasses.replace(QAT, learned_scales=learned_scales)
    result = compressed(made, network, digits, scheme(2))
    assert top1(result, digits) > nearest + 0.05
    assert {layer.weights for layer in result.layers} == {"s2 per-channel symmetric"}
    assert all(layer.activation_range and layer.weight_range for layer in result.layers)
    curves = {curve.name: curve for curve in result.curves}
    assert set(curves) == {"train_loss", "val_loss", "val_top1", "lr"}
    assert all(len(curve.values) == 4 and curve.step == "epoch" for curve in curves.values())
    assert curves["train_loss"].values[-1] < curves["train_loss"].values[0]


@pytest.mark.parametrize(
    ("half", "activations"), [("float16", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")]
)
def test_halves_are_trained(half: str, activations: str, network: torch.nn.Module, digits: Splits) -> None:
    wanted = Scheme(weights=half, activations=activations, arithmetic=activations)  # type: ignore[arg-type]
    made = dataclasses.replace(QAT, epochs=2, lr=1e-3)
    result = compressed(made, network, digits, wanted)
    assert {layer.weights for layer in result.layers} == {half}
    assert len(result.curves[0].values) == 2
    assert top1(result, digits) > 0.9


def test_the_same_seed_gives_the_same_codes(network: torch.nn.Module, digits: Splits) -> None:
    made = dataclasses.replace(QAT, epochs=1, max_steps=5)
    images = np.zeros((1, 3, SIZE, SIZE), np.float32)
    first, second = (logits_of(compressed(made, network, digits, scheme(4)).program, [images]) for _ in range(2))
    assert np.array_equal(first, second)
