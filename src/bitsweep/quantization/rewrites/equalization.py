"""Ranges evened out between the channels of a network that computes the same.

A ReLU, a pooling or a reshape between two layers lets a positive factor of a channel through, so that the first layer
may give s_i times less in channel i if the second multiplies it by s_i.

Paper: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv 1906.04721).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from bitsweep.graphs.im2col import groups_of
from bitsweep.graphs.ops import aten, attribute, bias_of, ensure_bias, is_layer, set_attribute
from bitsweep.quantization.layerwise import Unit, layerwise, outputs, parameters_of

RELU = aten.relu.default
#: Clamps from 0 that equalisation turns into ReLUs: their upper bound would not scale with the channel.
BOUNDED = {aten.relu6.default, aten.hardtanh.default}
#: What lets the factors of channels through.
EQUIVARIANT = {
    RELU, aten.leaky_relu.default, aten.prelu.default, aten.abs.default, aten.neg.default,
    aten.max_pool2d.default, aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default, aten.mean.dim, aten.flatten.using_ints, aten.view.default, aten.reshape.default,
    aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec, aten.upsample_bicubic2d.vec,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two layers of which the second alone takes the first's output, through operations that let factors through."""

    first: Node
    between: tuple[Node, ...]
    second: Node


def pairs(graph: GraphModule) -> list[Pair]:
    """The pairs of layers that can be equalised, in order; not across additions."""
    found = []
    for first in graph.graph.nodes:
        if not is_layer(first):
            continue
        node, between = first, list[Node]()
        while len(node.users) == 1:
            (node,) = node.users
            if is_layer(node):
                if _aligned(graph, first, node):
                    found.append(Pair(first=first, between=tuple(between), second=node))
                break
            if node.target not in EQUIVARIANT and not _is_bounded(node):
                break
            between.append(node)
    return found


def equalizing_factors(range1_C: Tensor, range2_C: Tensor) -> Tensor:
    """s_i = sqrt(r1_i r2_i) / r2_i, by which channel i of the first layer is divided; 1 where a channel is dead."""
    factor = (range1_C * range2_C).sqrt() / range2_C
    return torch.where((range1_C > 0) & (range2_C > 0), factor, torch.ones_like(factor))


def equalize(graph: GraphModule, *, iterations: int = 50, tolerance: float = 1e-3) -> int:
    """Equalise, in place, all pairs of layers in turn, until no factor differs from 1 by more than the tolerance.

    Clamps from 0 to 6 between two layers become ReLUs.

    Returns:
        The number of pairs.
    """
    found = pairs(graph)
    for pair in found:
        for node in pair.between:
            if _is_bounded(node):
                node.target, node.args, node.kwargs = RELU, node.args[:1], {}
    for _ in range(iterations):
        largest = 0.0
        for pair in found:
            weight1, weight2 = _weight(graph, pair.first), _weight(graph, pair.second)
            C = weight1.shape[0]
            columns = by_input_channel(weight2, pair.second, C)
            factor = equalizing_factors(weight1.flatten(1).abs().amax(1), columns.flatten(1).abs().amax(1))
            largest = max(largest, float(factor.log().abs().max()))
            set_attribute(graph, _path(pair.first), weight1 / factor.view(-1, *[1] * (weight1.ndim - 1)))
            if (bias := bias_of(pair.first)) is not None:
                set_attribute(graph, str(bias.target), attribute(graph, bias) / factor)
            scaled = columns * factor.view(-1, *[1] * (columns.ndim - 1))
            set_attribute(graph, _path(pair.second), from_input_channels(scaled, weight2, pair.second))
        if largest < tolerance:
            break
    graph.recompile()
    return len(found)


@torch.no_grad()
def absorb_high_biases(graph: GraphModule, batches: Sequence[Tensor], *, sigmas: float = 3.0) -> None:
    """Move, in place, what nearly always passes a ReLU from the bias before it into the bias of the layer after it.

    With mean and std of channel i before the ReLU, c_i = max(0, mean_i - sigmas std_i): relu(x - c) =
    relu(x) - c unless x < c, so that b1 -= c and b2 += W2 c. Near zero padding, which does not contain c, the network
    changes a little.

    Args:
        batches: calibration images, float32 [N, 3, H, W].
    """
    found = [pair for pair in pairs(graph) if [node.target for node in pair.between[:1]] == [RELU]]
    for pair in found:
        ensure_bias(graph, pair.first)
        ensure_bias(graph, pair.second)
    graph.recompile()
    parameters = parameters_of(graph)
    absorbed: dict[Node, Tensor] = {}
    units = {Unit(nodes=(pair.first,)): pair for pair in found}
    for given in layerwise(graph, list(units), batches, originals=parameters):
        yielded = torch.cat(outputs(given.unit, given.inputs, parameters))
        values = yielded.transpose(0, 1).flatten(1) if yielded.ndim > 2 else yielded.T
        absorbed[given.unit.nodes[0]] = (values.mean(1) - sigmas * values.std(1)).clamp(min=0)
    for pair in found:
        c = absorbed[pair.first]
        columns = by_input_channel(_weight(graph, pair.second), pair.second, len(c))  # [C, O / G, K]
        per_group = columns.sum(2) * c[:, None]
        added = per_group.reshape(groups_of(pair.second), -1, columns.shape[1]).sum(1).flatten()
        for layer, change in ((pair.first, -c), (pair.second, added)):
            bias = ensure_bias(graph, layer)
            set_attribute(graph, str(bias.target), attribute(graph, bias) + change)


def _aligned(graph: GraphModule, first: Node, second: Node) -> bool:
    """Whether channel i of the first layer is a group of consecutive inputs of the second, and nobody shares them."""
    channels = _weight(graph, first).shape[0]
    inputs = _weight(graph, second).shape[1] * groups_of(second)
    owned = all(len(parameter.users) == 1 for layer in (first, second) for parameter in layer.args[1:3]
                if isinstance(parameter, Node))  # fmt: skip
    return owned and inputs % channels == 0


def _is_bounded(node: Node) -> bool:
    return node.target in BOUNDED and (node.target != aten.hardtanh.default or node.args[1:2] == (0.0,))


def by_input_channel(weight: Tensor, layer: Node, C: int) -> Tensor:
    """Weights as [C, O / G, K]: all that multiplies input channel i of the layer."""
    G = groups_of(layer)
    O = weight.shape[0] // G
    grouped = weight.reshape(G, O, C // G, -1)
    return grouped.permute(0, 2, 1, 3).reshape(C, O, -1)


def from_input_channels(columns: Tensor, like: Tensor, layer: Node) -> Tensor:
    """The inverse of ``by_input_channel``."""
    G = groups_of(layer)
    C, O, K = columns.shape
    return columns.reshape(G, C // G, O, K).permute(0, 2, 1, 3).reshape(like.shape)


def _path(layer: Node) -> str:
    weight: Any = layer.args[1]
    return str(weight.target)


def _weight(graph: GraphModule, layer: Node) -> Tensor:
    weight: Any = layer.args[1]
    return attribute(graph, weight)
