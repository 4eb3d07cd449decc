"""Execution on integers against the program's own meaning, simulated in float64, and against sums written out."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node

from bitsweep.config.precision import Grid
from bitsweep.errors import CompressionError
from bitsweep.graphs import tracing
from bitsweep.graphs.ops import LAYER_KINDS, quantized
from bitsweep.quantization.biases import store_biases
from bitsweep.quantization.calibration import ranges
from bitsweep.quantization.integers import IntegerInterpreter, Integers, in_units, rescale
from bitsweep.quantization.placement import quantize_activations
from bitsweep.quantization.weights import nearest_codes, round_weights, store_codes
from tests.quantization.networks import SIZE, images, mixed

pytestmark = pytest.mark.slow

S8 = Grid(bits=8, signed=True, symmetric=True)
U8 = Grid(bits=8, signed=False, symmetric=False)
CHANNELS = Grid(bits=8, signed=True, symmetric=True, per_channel=True)
AFFINE_CHANNELS = Grid(bits=4, signed=True, symmetric=False, per_channel=True)


class Gated(nn.Module):
    """Pooling, padding, slices, concatenation, a gate, averages over windows, and functions that need floats."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(24 * 9, 4)

    def forward(self, batch: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.stem(batch))
        gate = nn.functional.hardsigmoid(self.squeeze(nn.functional.adaptive_avg_pool2d(x, 1)))
        x = x * gate
        narrow = nn.functional.max_pool2d(x, 2)
        wide = nn.functional.adaptive_avg_pool2d(nn.functional.pad(x, (0, 0, 0, 0, 4, 4)), 3)
        return self.head(torch.cat([narrow, wide], 1).flatten(1))


def program(
    graph: GraphModule, weights: Grid, activations: Grid, *, batches: list[Tensor] | None = None, biases: bool = True
) -> ExportedProgram:
    """A graph with nearest rounding and min-max ranges, and biases as codes or as floats."""
    batches = batches or images()
    choose = partial(nearest_codes, grid=weights, choose_range=ranges.minmax_weight_range)
    codes = round_weights(graph, choose)
    graph, _ = quantize_activations(graph, activations, ranges.minmax_range, batches)
    store_codes(graph, store_biases(graph, codes) if biases else codes)
    return tracing.export(graph, input_shape=(3, *batches[0].shape[2:]))


def gated() -> GraphModule:
    torch.manual_seed(0)
    return tracing.trace(Gated(), input_shape=(3, SIZE, SIZE))


class Simulated(Interpreter):
    """What a program means, in float64, with biases rounded to the units of the sums."""

    def __init__(self, meant: ExportedProgram) -> None:
        super().__init__(meant.module(check_guards=False), garbage_collect_values=False)

    def run_node(self, n: Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.target == quantized.quantize_per_tensor.default:
            x, scale, zero_point, lo, hi, dtype = args
            return (torch.round(x / scale) + zero_point).clamp(lo, hi).to(dtype)
        if n.target == quantized.dequantize_per_tensor.default:
            codes, scale, zero_point, *_ = args
            return (codes.double() - zero_point) * scale
        if n.target == quantized.dequantize_per_channel.default:
            codes, scale, zero_point, *_ = args
            along = (-1, *[1] * (codes.ndim - 1))
            return (codes.double() - zero_point.view(along)) * scale.double().view(along)
        if n.target in LAYER_KINDS and len(args) > 2 and args[2] is not None:
            unit = unit_of(n, self.env)
            args = (*args[:2], torch.round(args[2].double() / unit) * unit, *args[3:])
        result = getattr(self, n.op)(n.target, args, kwargs)
        return result.double() if isinstance(result, Tensor) and n.op == "placeholder" else result


def unit_of(layer: Node, values: dict[Node, Any]) -> Tensor:
    """s_x s_w, float64 [O] or []."""
    x, weight = layer.args[:2]
    assert isinstance(x, Node) and isinstance(weight, Node)
    scale = weight.args[1]
    return x.args[1] * (values[scale].double() if isinstance(scale, Node) else torch.tensor(scale, dtype=torch.float64))


GRIDS = [(S8, S8), (CHANNELS, S8), (S8, U8), (CHANNELS, U8), (AFFINE_CHANNELS, U8)]


@pytest.mark.parametrize("biases", [True, False], ids=["bias-codes", "float-biases"])
@pytest.mark.parametrize(("weights", "activations"), GRIDS, ids=lambda grid: str(grid).replace(" ", "-"))
@torch.no_grad()
def test_sums_are_those_of_the_simulated_program(weights: Grid, activations: Grid, biases: bool) -> None:
    """Every sum and every code: float64 rounds too little to tell."""
    meant = program(mixed(), weights, activations, biases=biases)
    (batch,) = images(32, batch=32)
    integers, simulated = IntegerInterpreter(meant, keep_values=True), Simulated(meant)
    logits = integers.run(batch)
    torch.testing.assert_close(logits, simulated.run(batch).float(), rtol=1e-6, atol=1e-7)
    simulated_values = {node.name: value for node, value in simulated.env.items()}
    layers = 0
    for node, value in integers.env.items():
        expected = simulated_values[node.name]
        if isinstance(value, Integers):
            assert value.values.dtype == torch.int32
        if node.target == quantized.quantize_per_tensor.default:
            assert value.dtype == expected.dtype
            assert torch.equal(value, expected), node
        elif node.target in LAYER_KINDS:
            layers += 1
            along = (-1, *[1] * (expected.ndim - 2)) if expected.ndim == 4 else (-1,)
            unit = unit_of(node, integers.env).reshape(along)
            sums = expected / unit
            assert (sums - sums.round()).abs().max() < 1e-4
            assert torch.equal(value.values.long(), sums.round().long()), node
    assert layers == 7
    assert integers.float_operations == {}


@torch.no_grad()
def test_codes_are_those_of_the_reference_but_for_ties() -> None:
    """The reference multiplies in float32, which may fall on the other side of a half."""
    meant = program(mixed(), S8, S8)
    (batch,) = images(32, batch=32)
    integers = IntegerInterpreter(meant, keep_values=True)
    reference = Interpreter(meant.module(check_guards=False), garbage_collect_values=False)
    logits, expected = integers.run(batch), reference.run(batch)
    assert (logits.argmax(1) == expected.argmax(1)).all()
    assert (logits - expected).norm() < 0.01 * expected.norm()
    codes = {node.name: value for node, value in reference.env.items()}
    for node, value in integers.env.items():
        if node.target == quantized.quantize_per_tensor.default:
            apart = (value.int() - codes[node.name].int()).abs()
            assert apart.max() <= 1, node
            assert apart.double().mean() < 1e-2, node


@torch.no_grad()
def test_a_convolution_written_out() -> None:
    meant = program(mixed(), CHANNELS, U8)
    integers = IntegerInterpreter(meant, keep_values=True)
    (batch,) = images(2, batch=2)
    integers.run(batch)
    (down,) = (node for node in integers.env if node.target in LAYER_KINDS and node.args[3:4] == ([2, 2],))
    x, weight = (integers.env[source].values.numpy().astype(object) for source in down.args[:2])
    bias = in_units(integers.env[down.args[2]], unit_of(down, integers.env)).numpy()
    sums = integers.env[down].values.numpy()
    for n, o, i, j in np.ndindex(*sums.shape):
        window = x[n, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        assert sums[n, o, i, j] == (window * weight[o]).sum() + bias[o]


@torch.no_grad()
def test_what_integers_cannot_express_is_listed() -> None:
    meant = program(gated(), S8, U8)
    integers = IntegerInterpreter(meant)
    (batch,) = images(12, batch=12)
    logits, expected = integers.run(batch), meant.module(check_guards=False)(batch)
    assert sorted(integers.float_operations.values()) == ["aten.hardsigmoid.default", "aten.hardswish.default"]
    assert (logits - expected).norm() < 0.02 * expected.norm()


@torch.no_grad()
def test_sums_of_more_than_32_bits_are_refused() -> None:
    torch.manual_seed(0)
    wide = Grid(bits=16, signed=True, symmetric=True)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4))
    with torch.no_grad():
        network[1].weight.fill_(0.1)
    meant = program(tracing.trace(network, input_shape=(3, SIZE, SIZE)), wide, wide)
    ones = torch.ones(1, 3, SIZE, SIZE)
    with pytest.raises(CompressionError, match="sums of linear do not fit in 32 bits; choose fewer bits"):
        IntegerInterpreter(meant).run(ones * images()[0].max())


@torch.no_grad()
def test_sums_beyond_float32_are_exact() -> None:
    """Products of 8-bit codes over 8,192 inputs add up to more than 2^24."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2))
    torch.manual_seed(0)
    network[1].weight.uniform_(0.5, 1)
    batch = torch.rand(2, 3, 64, 64) + 0.5
    meant = program(tracing.trace(network, input_shape=(3, 64, 64)), S8, S8, batches=[batch])
    integers = IntegerInterpreter(meant, keep_values=True)
    integers.run(batch)
    (layer,) = (node for node in integers.env if node.target in LAYER_KINDS)
    x, weight = (integers.env[source].values.long() for source in layer.args[:2])
    bias = in_units(integers.env[layer.args[2]], unit_of(layer, integers.env))
    expected = (x[:, None] * weight).sum(2) + bias
    assert expected.max() > 2**25
    assert torch.equal(integers.env[layer].values.long(), expected)


def test_biases_are_codes_of_the_sums() -> None:
    scale = torch.tensor([0.5, 0.25, 1e-12], dtype=torch.float64)
    bias = torch.tensor([1.25, -0.625, 1.0])
    assert in_units(bias, scale).tolist() == [2, -2, 2**31 - 1]
    codes = torch.tensor([7, -8, 2**30], dtype=torch.int32)
    assert torch.equal(in_units(Integers(values=codes, scale=scale), scale), codes)
    assert in_units(Integers(values=codes[:2], scale=2 * scale[:2]), scale[:2]).tolist() == [14, -16]


def test_rescaling_rounds_half_to_even() -> None:
    values = torch.tensor([1, 3, 5, -1, -3, 7], dtype=torch.int32)
    assert rescale(values, torch.tensor(0.5, dtype=torch.float64)).tolist() == [0, 2, 2, 0, -2, 4]
