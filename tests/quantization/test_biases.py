"""Biases as 32-bit codes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitsweep.config.precision import Grid
from bitsweep.graphs.ops import bias_of, is_layer, quantized
from bitsweep.graphs.tracing import export
from bitsweep.quantization import grids
from bitsweep.quantization.biases import LARGEST_CODE, bias_codes, store_biases, with_biases_of
from bitsweep.quantization.calibration.ranges import minmax_range, minmax_weight_range
from bitsweep.quantization.placement import quantize_activations
from bitsweep.quantization.weights import Codes, nearest_codes, round_weights, store_codes
from tests.quantization.networks import SIZE, images, mixed

UNSIGNED = Grid(bits=8, signed=False, symmetric=False)


def weight_grid(bits: int = 8, *, per_channel: bool = True) -> Grid:
    return Grid(bits=bits, signed=True, symmetric=True, per_channel=per_channel)


@given(
    bias=st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3),
    x_scale=st.floats(2**-13, 1, width=32),
    per_channel=st.booleans(),
    middle=st.sampled_from([0, 3]),
    magnitude=st.sampled_from([1e-2, 1e-6, 1e-12]),
)
def test_bias_codes(bias: list[float], x_scale: float, per_channel: bool, middle: int, magnitude: float) -> None:
    """The bias is met within half a unit, and weights within half of the scale that they end up with."""
    values = torch.tensor(bias)
    scale = torch.tensor([1.0, 2.0, 3.0] if per_channel else 1.0) * magnitude
    codes = torch.tensor([[-60, 3], [4, 60], [0, 1]], dtype=torch.int8)
    given_weight = Codes(
        codes=codes, scale=scale, zero_point=torch.full_like(scale, middle, dtype=torch.int64), grid=weight_grid()
    )
    coded, weight = bias_codes(values, x_scale=x_scale, weight=given_weight)
    assert coded.dtype == torch.int32
    assert (coded.abs().long() <= LARGEST_CODE).all()
    assert weight.codes.dtype == codes.dtype
    assert weight.scale.shape == scale.shape
    unit = x_scale * weight.scale.double()
    assert ((coded.double() * unit - values.double()).abs() <= 0.5001 * unit).all()
    moved = (weight.values.double() - given_weight.values.double()).abs()
    assert (moved <= 0.5001 * weight.scale.double().expand(3)[:, None]).all()


def test_ordinary_weights_are_left_alone() -> None:
    weight = Codes(
        codes=torch.tensor([[1, 2]], dtype=torch.int8), scale=torch.tensor([0.1]), zero_point=torch.zeros(1).long(),
        grid=weight_grid(),
    )  # fmt: skip
    coded, same = bias_codes(torch.tensor([0.5]), x_scale=0.5, weight=weight)
    assert coded.tolist() == [10]
    assert same is weight


@pytest.mark.parametrize("per_channel", [True, False])
def test_layers_read_their_biases_from_codes(per_channel: bool) -> None:
    graph, batches, grid = mixed(), images(), weight_grid(per_channel=per_channel)
    expected = {node.name: node for node in graph.graph.nodes if is_layer(node) and bias_of(node)}
    codes = round_weights(graph, lambda weight: nearest_codes(weight, grid, minmax_weight_range))
    converted, _ = quantize_activations(graph, UNSIGNED, minmax_range, batches)
    before = converted(batches[0])
    store_codes(converted, store_biases(converted, codes))
    names = set()
    for node in converted.graph.nodes:
        if node.name in expected:
            names.add(node.name)
            assert node.args[2].target in (
                quantized.dequantize_per_channel.default, quantized.dequantize_per_tensor.default,
            )  # fmt: skip
            assert node.args[2].args[-1] == torch.int32
    assert len(names) == len(expected) > 3
    assert grids.sqnr_db(before, converted(batches[0])) > 35


@pytest.mark.parametrize("wide", ["weights", "activations"])
def test_biases_of_wide_codes_stay_float(wide: str) -> None:
    graph, batches = mixed(), images()
    grid = weight_grid(16 if wide == "weights" else 8)
    activations = Grid(bits=16, signed=True, symmetric=True) if wide == "activations" else UNSIGNED
    codes = round_weights(graph, lambda weight: nearest_codes(weight, grid, minmax_weight_range))
    converted, _ = quantize_activations(graph, activations, minmax_range, batches)
    store_biases(converted, codes)
    assert not [name for name, _ in converted.named_buffers() if "bias_codes" in name]


@torch.no_grad()
def test_float_biases_put_back() -> None:
    """A program with coded biases then computes what it did with float ones."""
    batches, grid = images(), weight_grid()
    programs = []
    for store in (lambda graph, codes: codes, store_biases):
        graph = mixed()
        codes = round_weights(graph, lambda weight: nearest_codes(weight, grid, minmax_weight_range))
        graph, _ = quantize_activations(graph, UNSIGNED, minmax_range, batches)
        store_codes(graph, store(graph, codes))
        programs.append(export(graph, input_shape=(3, SIZE, SIZE)))
    floats, coded = programs
    restored = with_biases_of(coded, floats)
    expected = floats.module()(batches[0])
    assert torch.equal(restored(batches[0]), expected)
    assert not torch.equal(coded.module()(batches[0]), expected)
