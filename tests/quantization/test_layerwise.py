import torch
from torch.fx import Node

from bitsweep.config.precision import Grid
from bitsweep.graphs import im2col
from bitsweep.graphs.ops import arguments, attribute, bias_of, is_layer
from bitsweep.quantization.calibration.ranges import minmax_weight_range
from bitsweep.quantization.layerwise import (
    UnitInputs,
    activated_units,
    block_units,
    evaluate,
    layer_units,
    layerwise,
    outputs,
    parameters_of,
    round_units,
)
from bitsweep.quantization.weights import Codes, nearest_codes
from tests.quantization.networks import images, mixed

GRID = Grid(bits=3, signed=True, symmetric=True, per_channel=True)


def nearest(given: UnitInputs) -> dict[str, Codes]:
    return {path: nearest_codes(given.originals[path], GRID, minmax_weight_range) for path in given.weight_paths}


@torch.no_grad()
def test_a_unit_sees_both_networks() -> None:
    """The output of the last layer, from what the walk says it reads, is that of the whole networks."""
    graph = mixed()
    before = torch.cat([graph(batch) for batch in images()])
    seen: list[UnitInputs] = []

    def choose(given: UnitInputs) -> dict[str, Codes]:
        seen.append(given)
        return nearest(given)

    codes = round_units(graph, layer_units(graph), images(), choose)
    assert len(codes) == len(seen) == 7
    last = seen[-1]
    torch.testing.assert_close(torch.cat(last.outputs()), before)
    after = torch.cat([graph(batch) for batch in images()])
    torch.testing.assert_close(torch.cat(outputs(last.unit, last.rounded_inputs, parameters_of(graph))), after)
    assert (after - before).abs().max() > 0.01


@torch.no_grad()
def test_without_rounding_both_networks_are_one() -> None:
    graph = mixed()
    for given in layerwise(graph, block_units(graph), images(), originals=parameters_of(graph)):
        assert all(given.inputs[node] is given.rounded_inputs[node] for node in given.unit.inputs)


def names(nodes: tuple[Node, ...]) -> list[str]:
    return [str(node.target).split(".")[1] for node in nodes]


def test_units() -> None:
    graph = mixed()
    assert [names(unit.nodes) for unit in activated_units(graph)] == [
        ["conv2d", "relu"], ["conv2d", "relu"], ["conv2d", "relu6"], ["conv2d"], ["conv2d", "relu"],
        ["linear", "relu"], ["linear"],
    ]  # fmt: skip
    assert [names(unit.nodes) for unit in block_units(graph)] == [
        ["conv2d", "relu"], ["conv2d", "relu", "conv2d", "relu6", "conv2d", "add", "relu"], ["conv2d", "relu"],
        ["linear", "relu"], ["linear"],
    ]  # fmt: skip


@torch.no_grad()
def test_a_layer_is_a_product_of_matrices() -> None:
    """Weights times patches, for groups, dilation, string padding and strides."""
    graph = mixed()
    for given in layerwise(graph, layer_units(graph), images(), originals=parameters_of(graph)):
        (layer,) = given.unit.layers
        weight, bias = attribute(graph, arguments(layer)[1]), bias_of(layer)
        x = given.inputs[given.unit.inputs[0]][0]
        groups = im2col.groups_of(layer)
        product = im2col.weight_matrix(weight, groups) @ im2col.patches(x, layer, weight)
        expected = evaluate(given.unit.nodes, {given.unit.inputs[0]: x}, given.originals)
        offset = 0 if bias is None else attribute(graph, bias)[:, None]
        torch.testing.assert_close(product.flatten(0, 1) + offset, expected.transpose(0, 1).flatten(1))


def test_the_covariance_does_not_depend_on_the_batches() -> None:
    x = torch.randn(2, 5, 30).double()
    whole = im2col.gram([(x, x)])
    torch.testing.assert_close(im2col.gram((part, part) for part in x.split(7, dim=2)), whole)
    torch.testing.assert_close(whole, x @ x.mT)


def test_every_layer_is_a_unit() -> None:
    graph = mixed()
    layers = [node for node in graph.graph.nodes if is_layer(node)]
    for units in (layer_units(graph), activated_units(graph), block_units(graph)):
        assert [layer for unit in units for layer in unit.layers] == layers
