"""Lowered graphs against the Q/DQ programs that they come from, code by code."""

from collections import Counter
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from bitsweep.backends.torch_quantized.lowering import lowered
from bitsweep.config.precision import Grid
from bitsweep.errors import CompressionError
from bitsweep.graphs import ops, tracing
from bitsweep.quantization import dynamic
from bitsweep.quantization.biases import store_biases
from bitsweep.quantization.calibration import ranges
from bitsweep.quantization.placement import Placement, quantize_activations
from bitsweep.quantization.weights import nearest_codes, round_weights, store_codes
from tests.quantization.networks import SIZE, images, mixed

S7 = Grid(bits=7, signed=True, symmetric=True, per_channel=True)
S8_CHANNELS = Grid(bits=8, signed=True, symmetric=True, per_channel=True)
S8, S4 = Grid(bits=8, signed=True, symmetric=True), Grid(bits=4, signed=True, symmetric=True)
U8, U5 = Grid(bits=8, signed=False, symmetric=False), Grid(bits=5, signed=False, symmetric=False)
ENGINES = [name for name in ("fbgemm", "onednn", "qnnpack") if name in torch.backends.quantized.supported_engines]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine in turn, chosen."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = request.param
    yield request.param
    torch.backends.quantized.engine = before


class Gated(nn.Module):
    """A gate, pooling, padding, slices, concatenation, averages, and functions with and without kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(24 * 9, 4)

    def forward(self, batch: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.stem(batch))
        x = x * nn.functional.hardsigmoid(self.squeeze(nn.functional.adaptive_avg_pool2d(x, 1)))
        narrow = nn.functional.max_pool2d(nn.functional.silu(x), 2)
        wide = nn.functional.adaptive_avg_pool2d(nn.functional.pad(x, (0, 0, 0, 0, 4, 4))[..., 4:], 3)
        return self.head(torch.cat([narrow, wide], 1).view(batch.shape[0], -1))


def program(network: nn.Module, weights: Grid, activations: Grid, *, unit: float = 1.0) -> ExportedProgram:
    """A network with nearest rounding and min-max ranges, for images of that magnitude."""
    graph = network if isinstance(network, GraphModule) else tracing.trace(network.eval(), input_shape=(3, SIZE, SIZE))
    batches = [batch * unit for batch in images()]
    codes = round_weights(graph, partial(nearest_codes, grid=weights, choose_range=ranges.minmax_weight_range))
    graph, _ = quantize_activations(graph, activations, ranges.minmax_range, batches, Placement(yields_floats=False))
    store_codes(graph, store_biases(graph, codes))
    return tracing.export(graph, input_shape=(3, SIZE, SIZE))


@cache
def meant_by(network: type[nn.Module] | None, activations: Grid) -> ExportedProgram:
    """Program of a network, or of the mixed one, in 7-bit weights."""
    torch.manual_seed(0)
    return program(mixed() if network is None else network(), S7, activations)


def operations(graph: GraphModule) -> Counter[str]:
    return Counter(
        str(node.target).removesuffix(".default") for node in graph.graph.nodes if node.op == "call_function"
    )


def assert_same_logits(meant: ExportedProgram, found: GraphModule, *, unit: float = 1.0) -> None:
    """All but a few: a value that lies between two codes may round to either."""
    (batch,) = images(64, batch=64)
    with torch.no_grad():
        expected, logits = meant.module(check_guards=False)(batch * unit), found(batch * unit)
    off = (expected - logits).abs().amax(1) / expected.abs().max()
    assert (off < 1e-4).float().mean() > 0.9
    assert off.max() < 0.05


@pytest.mark.parametrize("activations", [U8, S8, U5, S4], ids=str)
def test_codes_are_those_of_the_program(engine: str, activations: Grid) -> None:
    """Signed ones are shifted, and grids of fewer codes than a byte clamped."""
    meant = meant_by(None, activations)
    found = lowered(meant)
    assert_same_logits(meant, found)
    assert operations(found)["aten.conv2d"] == operations(found)["aten.linear"] == 0
    assert (operations(found)["quantized.clamp"] > 0) == (activations != U8)


class Perceptron(nn.Sequential):
    """Linear layers of codes to codes, one with a rectifier and one without."""

    def __init__(self) -> None:
        layers = nn.Linear(3 * SIZE**2, 16), nn.ReLU(), nn.Linear(16, 8), nn.Sigmoid(), nn.Linear(8, 4)
        super().__init__(nn.Flatten(), *layers)


def test_linear_layers_are_convolutions_where_these_are_faster(engine: str) -> None:
    meant = meant_by(Perceptron, U8)
    found = lowered(meant)
    assert_same_logits(meant, found)
    assert len(found(images()[0][:1])) == 1
    used = operations(found)
    linear = used["quantized.linear_relu"], used["quantized.linear"]
    convolutions = used["quantized.conv2d_relu.new"], used["quantized.conv2d.new"]
    assert (linear, convolutions) == (((0, 0), (1, 1)) if engine == "onednn" else ((1, 1), (0, 0)))


@pytest.mark.parametrize("activations", [U8, S8], ids=str)
def test_what_has_no_kernel_stays_in_float(engine: str, activations: Grid) -> None:
    meant = meant_by(Gated, activations)
    found = lowered(meant)
    assert_same_logits(meant, found)
    assert len(found(images()[0][:1])) == 1
    kernels = operations(found)
    floats = {"aten.silu", "aten.hardsigmoid", "aten.adaptive_avg_pool2d"}
    assert floats <= set(kernels)
    assert {"quantized.conv2d.new", "quantized.hardswish", "quantized.mul", "quantized.cat"} <= set(kernels)
    assert "aten.mul.Tensor" not in kernels


def test_logits_are_exact_however_small_the_values(engine: str) -> None:
    """The kernel of the last layer knows no scale below 6e-5 of its own."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4, bias=False))
    nn.init.zeros_(network[0].bias)
    meant = program(network, S7, U8, unit=1e-7)
    assert_same_logits(meant, lowered(meant), unit=1e-7)


def test_values_that_a_file_cannot_hold_are_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 4))
    with pytest.raises(CompressionError, match=r"yields values up to .e\+1., which files of TorchScript do not hold"):
        lowered(program(network, S7, U8, unit=1e13))


def test_scales_of_a_batch_are_found_while_it_runs(engine: str) -> None:
    graph = mixed()
    paths = {ops.arguments(layer)[1].target: layer for layer in dynamic.linear_layers(graph)}
    values = {path: ops.attribute(graph, ops.arguments(layer)[1]) for path, layer in paths.items()}
    codes = {path: nearest_codes(value, S7, ranges.minmax_weight_range) for path, value in values.items()}
    dynamic.quantize_reads(graph, U8)
    store_codes(graph, codes)
    meant = tracing.export(graph, input_shape=(3, SIZE, SIZE))
    found = lowered(meant)
    assert_same_logits(meant, found)
    assert operations(found)["quantized.linear_dynamic"] == 2
    assert operations(found)["aten.conv2d"] + operations(found)["aten.conv2d.padding"] == 5


class Counting(nn.Module):
    """Divides by the number of images."""

    def forward(self, batch: Tensor) -> Tensor:
        return batch.flatten(1) * batch.shape[0]


def test_the_number_of_images_is_asked_for_when_they_come() -> None:
    found = lowered(tracing.export(Counting(), input_shape=(3, SIZE, SIZE)))
    for count in (1, 5):
        batch = torch.rand(count, 3, SIZE, SIZE)
        torch.testing.assert_close(found(batch), batch.flatten(1) * count)
