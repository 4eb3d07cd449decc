"""Every method that rounds weights: same road, same promises, whatever the network."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from bitsweep.config.method import Method
from bitsweep.config.precision import Grid, Scheme
from bitsweep.data.preprocessing import preprocess
from bitsweep.errors import CompressionError
from bitsweep.graphs.program import logits_of
from bitsweep.results import Compression, Splits
from tests.quantization.networks import SIZE, Mixed, noise_splits

pytestmark = pytest.mark.slow

CONF = Path(__file__).parents[2] / "conf"
#: One alphabet a layer clips the outputs with the largest weights, however many bits it has.
LEAST_ERROR = {"msq": 0.6}
METHODS = ["ptq", "msq", "three_sigma", "gptq", "gpfq", "adaround", "brecq"]
UNSIGNED = Grid(bits=8, signed=False, symmetric=False)


def method(name: str, **knobs: Any) -> Method:
    """As its YAML has it, with little calibration."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        made: Method = instantiate(compose("config", [f"method={name}"]).method, _convert_="all")
    small: dict[str, Any] = {"calibration_images": 32, "calibration_batch": 16}
    if hasattr(made, "iterations"):
        small["iterations"] = 100
    return dataclasses.replace(made, **(small | knobs))


@pytest.fixture(scope="module")
def splits() -> Splits:
    return noise_splits(SIZE)


def scheme(bits: int, *, activations: Any = "float32", symmetric: bool = True, per_channel: bool = True) -> Scheme:
    weights = Grid(bits=bits, signed=True, symmetric=symmetric, per_channel=per_channel)
    return Scheme(weights=weights, activations=activations, arithmetic="simulated")


def network() -> nn.Module:
    torch.manual_seed(0)
    made = Mixed()
    made(torch.randn(16, 3, SIZE, SIZE))
    return made.eval()


def noise(model: nn.Module, result: Compression, splits: Splits) -> float:
    """Relative error of the logits on the test images."""
    images = preprocess(splits.test.images, input_shape=(3, SIZE, SIZE), mean_C=splits.mean_C, std_C=splits.std_C)
    with torch.no_grad():
        expected = model(images).numpy()
    logits = logits_of(result.program, [images.numpy()])
    assert np.isfinite(logits).all()
    return float(np.linalg.norm(logits - expected) / np.linalg.norm(expected - expected.mean(0)))


def compressed(made: Method, model: nn.Module, splits: Splits, wanted: Scheme) -> Compression:
    return made.compress(model, splits, input_shape=(3, SIZE, SIZE), scheme=wanted, seed=0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("activations", ["float32", UNSIGNED], ids=str)
def test_more_bits_are_closer(name: str, activations: Any, splits: Splits) -> None:
    errors = []
    for bits in (3, 8):
        result = compressed(method(name), network(), splits, scheme(bits, activations=activations))
        assert len(result.layers) == 7
        assert all(layer.weights.startswith("s") and not layer.reason for layer in result.layers)
        errors.append(noise(network(), result, splits))
    assert errors[0] > errors[1]
    assert errors[1] < LEAST_ERROR.get(name, 0.1)


@pytest.mark.parametrize("name", ["ptq", "gptq", "gpfq", "adaround", "brecq"])
def test_grids_are_those_of_the_scheme(name: str, splits: Splits) -> None:
    for wanted in (scheme(2, symmetric=False), scheme(4, per_channel=False), scheme(16)):
        result = compressed(method(name), network(), splits, wanted)
        assert {layer.weights for layer in result.layers} == {str(wanted.weights)}


@pytest.mark.parametrize("name", ["gptq", "gpfq", "adaround", "brecq"])
def test_what_looks_at_data_beats_nearest_rounding(name: str, splits: Splits) -> None:
    # The outputs of an untrained network are small, and so must the regulariser be.
    learned = {"iterations": 500, "regularization": 1e-4} if name in ("adaround", "brecq") else {}
    made = method(name, weight_range="minmax", **learned)
    nearest = noise(network(), compressed(method("ptq"), network(), splits, scheme(3)), splits)
    assert noise(network(), compressed(made, network(), splits, scheme(3)), splits) < 0.8 * nearest


def test_corrections_compose_with_any_rounding(splits: Splits) -> None:
    plain = noise(network(), compressed(method("ptq"), network(), splits, scheme(3, per_channel=False)), splits)
    for name in METHODS:
        made = method(name, equalize=True, absorb_bias=True, correct_bias=True)
        result = compressed(made, network(), splits, scheme(3, per_channel=False, activations=UNSIGNED))
        assert noise(network(), result, splits) < plain


@pytest.mark.parametrize("name", METHODS)
def test_degenerate_networks(name: str, splits: Splits) -> None:
    """A dead channel, a layer with one input, and an activation that never changes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 1), nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4)
    )
    with torch.no_grad():
        model[0].weight[1] = 0  # type: ignore[index, operator]
        model[0].bias[1] = 0.5  # type: ignore[index, operator]
        model[0].weight[2], model[0].bias[2] = 0, -1  # type: ignore[index, operator]
    result = compressed(method(name, equalize=True, correct_bias=True), model.eval(), splits, scheme(8))
    assert noise(model, result, splits) < LEAST_ERROR.get(name, 0.2)


@pytest.mark.parametrize("name", METHODS)
def test_weights_that_are_not_finite(name: str, splits: Splits) -> None:
    model = network()
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")  # type: ignore[union-attr, index, operator]
    with pytest.raises(CompressionError, match=r"head\.weight holds values that are not finite"):
        compressed(method(name), model, splits, scheme(4))


@pytest.mark.parametrize("name", ["gpfq", "adaround", "brecq"])
def test_the_same_seed_gives_the_same_codes(name: str, splits: Splits) -> None:
    first, second = (compressed(method(name), network(), splits, scheme(4)) for _ in range(2))
    assert noise(network(), first, splits) == noise(network(), second, splits)


@pytest.mark.parametrize(
    "knobs",
    [
        {"form": "samples"}, {"alphabet": "zhang"}, {"alphabet": "lybrand", "radius": 3.0}, {"stochastic": True},
        {"threshold": "hard", "sparsity": 0.3}, {"threshold": "soft", "sparsity": 0.1},
    ],
    ids=str,
)  # fmt: skip
def test_variants_of_gpfq(knobs: dict[str, Any], splits: Splits) -> None:
    assert noise(network(), compressed(method("gpfq", **knobs), network(), splits, scheme(4)), splits) < 0.7


@pytest.mark.parametrize("name", ["ptq", "msq", "gptq", "gpfq", "adaround", "mixed", "qat"])
def test_depthwise_layers_can_have_fewer_bits(name: str, splits: Splits) -> None:
    knobs: dict[str, Any] = {"adaround": {"iterations": 2}, "qat": {"max_steps": 1}, "mixed": {"study_images": 8}}
    wanted = scheme(8, activations=UNSIGNED)
    assert isinstance(wanted.weights, Grid)
    wanted = dataclasses.replace(wanted, weights=dataclasses.replace(wanted.weights, depthwise_bits=5))
    result = compressed(method(name, **knobs.get(name, {})), network(), splits, wanted)
    # An alphabet has two values more than a grid of its bits.
    most = 2**4 if name in ("msq", "gpfq") else 2**4 - 1
    codes = {path: each for path, each in result.program.state_dict.items() if path.endswith("weight_codes")}
    codes |= {path: each for path, each in result.program.constants.items() if path.endswith("weight_codes")}
    assert "depthwise.weight_codes" in codes
    for path, each in codes.items():
        if path == "depthwise.weight_codes":
            assert each.abs().max() <= most
        elif name != "mixed":
            assert each.abs().max() > most, path
