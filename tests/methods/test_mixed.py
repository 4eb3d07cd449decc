"""Bits for each layer of a network under a budget."""

import copy
import dataclasses
import re

import pytest
import torch

from bitsweep.config.precision import Grid, Scheme
from bitsweep.data.preprocessing import preprocess
from bitsweep.errors import CompressionError
from bitsweep.methods.mixed import MixedPrecision
from bitsweep.results import Compression, Splits
from tests.quantization.networks import SIZE, Mixed, noise_splits

pytestmark = pytest.mark.slow

MIXED = MixedPrecision(name="mixed", bits=(8, 4, 2), calibration_images=32, study_images=48)
SCHEME = Scheme(
    weights=Grid(bits=7, signed=True, symmetric=True, per_channel=True),
    activations=Grid(bits=8, signed=False, symmetric=False),
    arithmetic="simulated",
)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    made = Mixed()
    images = torch.randn(64, 3, SIZE, SIZE)
    made(images)
    made.eval()
    with torch.no_grad():
        made.head.bias -= made(images).mean(0)  # or it would give all images to one class
    return made


@pytest.fixture(scope="module")
def splits(network: torch.nn.Module) -> Splits:
    """Images of which the float network knows every class, because it is what it says."""
    plain = noise_splits(SIZE)
    images = preprocess(plain.val.images, input_shape=(3, SIZE, SIZE), mean_C=plain.mean_C, std_C=plain.std_C)
    with torch.no_grad():
        labels = network(images).argmax(1).numpy()
    return dataclasses.replace(plain, val=dataclasses.replace(plain.val, labels=labels))


def compressed(method: MixedPrecision, network: torch.nn.Module, splits: Splits) -> Compression:
    return method.compress(copy.deepcopy(network), splits, input_shape=(3, SIZE, SIZE), scheme=SCHEME, seed=0)


def weight_bits(result: Compression) -> list[int]:
    found = [re.match(r"s(\d+) ", layer.weights) for layer in result.layers]
    return [int(each.group(1)) for each in found if each]


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_a_budget_of_size_is_kept(rounding: str, network: torch.nn.Module, splits: Splits) -> None:
    # The guard gives layers without a bias one.
    plain = dataclasses.replace(MIXED, budget="size", guard=False)
    result = compressed(dataclasses.replace(plain, size_share=0.7, rounding=rounding), network, splits)  # type: ignore[arg-type]
    full = compressed(dataclasses.replace(plain, size_share=1.0), network, splits)
    assert set(weight_bits(full)) == {7}
    assert len(weight_bits(result)) == 7
    assert set(weight_bits(result)) <= {7, 4, 2}
    bits, trade_off = result.tables
    assert [row[1] for row in bits.rows] == weight_bits(result)
    weights = [
        {layer.name: layer.stored_bits - 32 * bias(network, layer.name) for layer in each.layers}
        for each in (result, full)
    ]
    assert sum(weights[0].values()) <= 0.7 * sum(weights[1].values())
    assert trade_off.rows[0][1] == pytest.approx(sum(weights[0].values()) / 8e6)


def bias(network: torch.nn.Module, name: str) -> int:
    """Number of biases of a layer as stored; the normalisation gives the stem some."""
    layer = network.get_submodule(name)
    return len(layer.weight) if name == "stem" or layer.bias is not None else 0  # type: ignore[arg-type]


def test_a_budget_of_accuracy(network: torch.nn.Module, splits: Splits) -> None:
    """Nothing to lose keeps more bits than everything to lose, which keeps the fewest of all."""
    strict = compressed(dataclasses.replace(MIXED, drop_pp=0), network, splits)
    lax = compressed(dataclasses.replace(MIXED, drop_pp=100), network, splits)
    assert set(weight_bits(lax)) == {2}
    assert sum(weight_bits(strict)) > sum(weight_bits(lax))
    trade_off = strict.tables[1]
    assert trade_off.rows[0][0] == "float"
    assert len(trade_off.rows) > 2


def test_a_budget_that_cannot_be_kept(network: torch.nn.Module, splits: Splits) -> None:
    with pytest.raises(CompressionError, match=r"method\.size_share=0\.05: .* allow fewer bits"):
        compressed(dataclasses.replace(MIXED, budget="size", size_share=0.05), network, splits)
