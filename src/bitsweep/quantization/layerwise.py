"""Runs a network layer by layer, twice at once: as it was, and with the weights that have been rounded so far.

Rounding that looks at data treats a network in units, in the order in which they run. A unit sees its inputs in
the float network and its inputs in the network whose earlier units are rounded already.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from bitsweep.graphs.ops import ELEMENTWISE, arguments, attribute, is_layer, set_attribute
from bitsweep.quantization.weights import Codes

#: Outputs of a node, one for each batch.
Batches = list[Any]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Operations whose weights are rounded together.

    Attributes:
        nodes: in the order in which they run; the output of the last one is that of the unit.
    """

    nodes: tuple[Node, ...]

    @property
    def layers(self) -> tuple[Node, ...]:
        """Those with weights."""
        return tuple(node for node in self.nodes if is_layer(node))

    @property
    def inputs(self) -> tuple[Node, ...]:
        """Nodes of the rest of the network whose outputs the unit takes, parameters apart."""
        sources = (source for node in self.nodes for source in node.all_input_nodes)
        return tuple(dict.fromkeys(node for node in sources if node not in self.nodes and node.op != "get_attr"))


@dataclass(frozen=True, kw_only=True)
class UnitInputs:
    """Inputs of a unit, while its weights are to be replaced in the graph.

    Attributes:
        inputs: by node, those in the float network.
        rounded_inputs: the same in the network rounded so far.
        originals: parameters of the float network by path.
    """

    unit: Unit
    inputs: dict[Node, Batches]
    rounded_inputs: dict[Node, Batches]
    originals: Mapping[str, torch.Tensor]

    @property
    def weight_paths(self) -> tuple[str, ...]:
        """Paths of the weights of the unit's layers."""
        return tuple(str(arguments(layer)[1].target) for layer in self.unit.layers)

    def outputs(self) -> Batches:
        """Outputs of the unit in the float network."""
        return outputs(self.unit, self.inputs, self.originals)


def parameters_of(graph: GraphModule) -> dict[str, torch.Tensor]:
    """The parameters and buffers that a graph uses, by path."""
    return {str(node.target): attribute(graph, node) for node in graph.graph.find_nodes(op="get_attr")}


def round_units(
    graph: GraphModule,
    units: Sequence[Unit],
    batches: Sequence[torch.Tensor],
    choose_codes: Callable[[UnitInputs], Mapping[str, Codes]],
) -> dict[str, Codes]:
    """Round, in place, unit after unit.

    Args:
        batches: images, float32 [N, 3, H, W].
        choose_codes: from inputs of a unit to the codes of its layers, by the path of the weights.

    Returns:
        The codes of all layers, for ``store_codes``; until then the graph computes with their values.
    """
    codes: dict[str, Codes] = {}
    for given in layerwise(graph, units, batches, originals=parameters_of(graph)):
        if codes.keys() >= set(given.weight_paths):  # the same weights again
            continue
        for path, chosen in choose_codes(given).items():
            codes[path] = chosen
            set_attribute(graph, path, chosen.values)
    return codes


@torch.no_grad()
def layerwise(
    graph: GraphModule,
    units: Sequence[Unit],
    batches: Sequence[torch.Tensor],
    *,
    originals: Mapping[str, torch.Tensor],
) -> Iterator[UnitInputs]:
    """Give every unit in order; later units see the parameters that the graph has by then.

    Args:
        batches: images, float32 [N, 3, H, W].
        originals: parameters of the float network, by path.
    """
    starts = {unit.nodes[0]: unit for unit in units}
    last_reader = {source: node for node in graph.graph.nodes for source in node.all_input_nodes}
    inputs: dict[Node, Batches] = {}
    rounded: dict[Node, Batches] = {}  # shares what is the same in both networks
    for node in graph.graph.nodes:
        if unit := starts.get(node):
            yield UnitInputs(
                unit=unit,
                inputs={source: inputs[source] for source in unit.inputs},
                rounded_inputs={source: rounded[source] for source in unit.inputs},
                originals=originals,
            )
        if node.op == "placeholder":
            inputs[node] = rounded[node] = list(batches)
        elif node.op == "call_function":
            parameters = {
                str(source.target): attribute(graph, source) for source in node.all_input_nodes if _is_parameter(source)
            }
            inputs[node] = [_apply(node, inputs, originals, batch) for batch in range(len(batches))]
            same = all(
                inputs[source] is rounded[source] for source in node.all_input_nodes if source in inputs
            ) and all(value.data_ptr() == originals[path].data_ptr() for path, value in parameters.items())
            rounded[node] = (
                inputs[node] if same else [_apply(node, rounded, parameters, batch) for batch in range(len(batches))]
            )
        for source in node.all_input_nodes:
            if last_reader[source] is node:
                inputs.pop(source, None)
                rounded.pop(source, None)


def outputs(unit: Unit, inputs: Mapping[Node, Batches], parameters: Mapping[str, torch.Tensor]) -> Batches:
    """Outputs of a unit, one for each batch."""
    count = len(next(iter(inputs.values())))
    return [
        evaluate(unit.nodes, {node: batches[batch] for node, batches in inputs.items()}, parameters)
        for batch in range(count)
    ]


def evaluate(nodes: Sequence[Node], values: Mapping[Node, Any], parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Output of the last of some operations.

    Args:
        values: by node, their inputs from other operations.
        parameters: by path.
    """
    known = dict(values)
    for node in nodes:
        known[node] = _call(node, known, parameters)
    result: torch.Tensor = known[nodes[-1]]
    return result


def layer_units(graph: GraphModule) -> list[Unit]:
    """Every layer for itself."""
    return [Unit(nodes=(node,)) for node in graph.graph.nodes if is_layer(node)]


def activated_units(graph: GraphModule) -> list[Unit]:
    """Every layer with the activation function that alone takes its output."""
    units = []
    for unit in layer_units(graph):
        (layer,) = unit.nodes
        readers = tuple(layer.users)
        fused = len(readers) == 1 and readers[0].target in ELEMENTWISE and readers[0].all_input_nodes == [layer]
        units.append(Unit(nodes=(layer, *readers)) if fused else unit)
    return units


def block_units(graph: GraphModule) -> list[Unit]:
    """The shortest stretches of the network with layers in them that one tensor enters and one leaves.

    A residual block is one, a layer of a plain network is one; activation functions belong to the stretch before them.
    """
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    last_reader = {source: node for node in graph.graph.nodes for source in node.all_input_nodes}
    live: set[Node] = set(graph.graph.find_nodes(op="placeholder"))
    stretches: list[list[Node]] = [[]]
    for node in nodes:
        stretches[-1].append(node)
        live.add(node)
        live -= {source for source in node.all_input_nodes if last_reader[source] is node}
        if live == {node}:
            stretches.append([])
    merged: list[list[Node]] = []
    for stretch in stretches:
        if merged and all(node.target in ELEMENTWISE for node in stretch):
            merged[-1] += stretch
        else:
            merged.append(stretch)
    return [Unit(nodes=tuple(stretch)) for stretch in merged if any(is_layer(node) for node in stretch)]


def _is_parameter(node: Node) -> bool:
    return node.op == "get_attr"


def _apply(node: Node, values: Mapping[Node, Batches], parameters: Mapping[str, torch.Tensor], batch: int) -> Any:
    read = {source: values[source][batch] for source in node.all_input_nodes if not _is_parameter(source)}
    return _call(node, read, parameters)


def _call(node: Node, values: Mapping[Node, Any], parameters: Mapping[str, torch.Tensor]) -> Any:
    def value(source: Node) -> Any:
        return parameters[str(source.target)] if _is_parameter(source) else values[source]

    assert callable(node.target)
    return node.target(*map_arg(arguments(node), value), **map_arg(node.kwargs, value))
