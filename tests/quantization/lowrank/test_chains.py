"""Chains against the layers whose place they take."""

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from bitsweep.config.precision import Grid
from bitsweep.graphs import ops, tracing
from bitsweep.graphs.ops import attribute, quantized
from bitsweep.quantization.calibration.ranges import minmax_weight_range
from bitsweep.quantization.lowrank import chains
from bitsweep.quantization.lowrank.admm import factors_of, round_factors
from bitsweep.quantization.lowrank.chains import Chain
from bitsweep.quantization.lowrank.factorization import decompose, orthogonal_components, reconstruct
from bitsweep.quantization.weights import store_codes
from tests.quantization.networks import SIZE, images

pytestmark = pytest.mark.slow

LAYERS = {
    "stride, padding, dilation": nn.Conv2d(3, 5, 3, stride=2, padding=2, dilation=2),
    "oblong, no bias": nn.Conv2d(3, 5, (1, 3), stride=(2, 1), padding=(0, 1), bias=False),
    "same": nn.Conv2d(3, 5, 3, padding="same", dilation=2),
    "reflected": nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"),
    "1 x 1": nn.Conv2d(3, 5, 1),
    "1 x 1, stride, padding": nn.Conv2d(3, 5, 1, stride=2, padding=1, bias=False),
    "conv1d": nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 5, 4, stride=3, padding=1)),
    "conv1d same": nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 5, 3, padding="same")),
    "linear": nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 5)),
    "linear on each position": nn.Linear(SIZE, 5, bias=False),
}


def traced(layer: nn.Module) -> GraphModule:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return tracing.trace(nn.Sequential(layer, nn.ReLU()).eval(), input_shape=(3, SIZE, SIZE))


def weight_of(graph: GraphModule) -> tuple[str, Tensor]:
    (layer,) = filter(ops.is_layer, graph.graph.nodes)
    return str(layer.args[1].target), attribute(graph, layer.args[1])


def made(weight: Tensor, rank: int) -> Chain:
    target = chains.tensor_of(weight)
    start = orthogonal_components(target).largest(rank)
    return chains.chain_of_factors(decompose(target, start, iterations=3, correction_iterations=1), weight.shape)


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_a_chain_computes_what_its_product_does(name: str) -> None:
    graph = traced(LAYERS[name])
    path, weight = weight_of(graph)
    found = {path: made(weight, 4)}
    chains.set_products(graph, found)
    product = weight_of(graph)[1]
    assert product.shape == weight.shape
    assert not torch.equal(product, weight)
    (batch,) = images(4, batch=4)
    expected = graph(batch)
    layers, codes = chains.split(graph, ops.layers(graph), found)
    assert codes == {}
    torch.testing.assert_close(graph(batch), expected, rtol=1e-4, atol=1e-4)
    assert sum(map(ops.is_layer, graph.graph.nodes)) == len(layers[0].factors) + 1 == len(found[path].weights)
    assert path not in dict(graph.named_buffers()) | dict(graph.named_parameters())


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_values_say_what_shape_they_have(name: str) -> None:
    """What quantizes activations asks each node for the type of what it yields."""
    graph = traced(LAYERS[name])
    path, weight = weight_of(graph)
    chains.split(graph, ops.layers(graph), {path: made(weight, 4)})

    class Checked(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if n.op == "call_function":
                assert value.shape[1:] == n.meta["val"].shape[1:]
                assert value.dtype == n.meta["val"].dtype
            return value

    Checked(graph).run(*images(2, batch=2))


def test_shapes_of_the_layers() -> None:
    shapes = {
        torch.Size((6, 5)): [(4, 5), (6, 4)],
        torch.Size((6, 5, 1, 1)): [(4, 5, 1, 1), (6, 4, 1, 1)],
        torch.Size((6, 5, 3, 2)): [(4, 5, 1, 1), (4, 1, 3, 2), (6, 4, 1, 1)],
        torch.Size((6, 5, 7)): [(4, 5, 1), (4, 1, 7), (6, 4, 1)],
    }
    for shape, expected in shapes.items():
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        assert [tuple(each.shape) for each in made(weight, 4).weights] == expected


@pytest.mark.parametrize("name", ["stride, padding, dilation", "1 x 1", "linear"])
@pytest.mark.parametrize("per_channel", [True, False])
@torch.no_grad()
def test_codes_are_those_of_the_new_layers(name: str, per_channel: bool) -> None:
    """Stored, they compute what the product of the factors on the grid does."""
    grid = Grid(bits=4, signed=True, symmetric=True, per_channel=per_channel)
    graph = traced(LAYERS[name])
    path, weight = weight_of(graph)
    target = chains.tensor_of(weight)
    rounded = round_factors(orthogonal_components(target).largest(3), grid, minmax_weight_range)
    found = {path: chains.chain_of_codes(rounded, weight.shape)}
    product = reconstruct(factors_of(rounded)).reshape(weight.shape)
    torch.testing.assert_close(chains.product(found[path].weights), product)
    chains.set_products(graph, found)
    (batch,) = images(4, batch=4)
    expected = graph(batch)
    _, codes = chains.split(graph, ops.layers(graph), found)
    store_codes(graph, codes)
    torch.testing.assert_close(graph(batch), expected, rtol=1e-4, atol=1e-4)
    wanted = "per_channel" if per_channel else "per_tensor"
    layers = [node for node in graph.graph.nodes if node.target in ops.LAYER_KINDS]
    assert [node.args[1].target for node in layers] == [getattr(quantized, f"dequantize_{wanted}").default] * len(
        layers
    )
    assert len(layers) == len(rounded)


@torch.no_grad()
def test_layers_that_share_their_weights() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.relu(self.layer(x)))

    torch.manual_seed(0)
    graph = tracing.trace(Twice(), input_shape=(3, SIZE, SIZE))
    weight = attribute(graph, next(filter(ops.is_layer, graph.graph.nodes)).args[1])
    found = {"layer.weight": made(weight, 3)}
    chains.set_products(graph, found)
    (batch,) = images(4, batch=4)
    expected = graph(batch)
    layers, _ = chains.split(graph, ops.layers(graph), found)
    torch.testing.assert_close(graph(batch), expected, rtol=1e-4, atol=1e-5)
    assert [len(layer.factors) for layer in layers] == [2, 2]
    assert len(dict(graph.named_buffers())) == 3


@torch.no_grad()
def test_a_layer_that_stays_one() -> None:
    graph = traced(LAYERS["1 x 1"])
    path, weight = weight_of(graph)
    halved = {path: Chain(weights=(weight / 2,))}
    chains.set_products(graph, halved)
    layers, _ = chains.split(graph, ops.layers(graph), halved)
    assert layers[0].factors == ()
    torch.testing.assert_close(weight_of(graph)[1], weight / 2)
