"""Means of channels moved into the layers that read them, in a network that computes the same.

With W (x + c) = W x + W c, a layer may yield a constant less in each channel if the bias of every layer that reads it
makes up for that. Sums, pooling and whatever moves values hand a constant on; a function does not, and nor does a
convolution at a border of zeros. So this is for the narrow layers without a function of MobileNets and their like,
whose biases may lie far apart: one scale for all channels then has its codes for what never changes.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg

from bitsweep.graphs.im2col import geometry
from bitsweep.graphs.ops import (
    LAYER_KINDS,
    arguments,
    aten,
    attribute,
    ensure_bias,
    is_layer,
    set_attribute,
    with_defaults,
)
from bitsweep.quantization.analysis.channels import along_channels, mean_of_channels
from bitsweep.quantization.rewrites.channel_groups import owns_parameters

#: f(x + c) = f(x) + f(c) for c that is constant within channels, and so is f(c).
_ADDITIVE = {
    aten.add.Tensor, aten.cat.default, aten.slice.Tensor, aten.max_pool2d.default, aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default, aten.mean.dim, aten.flatten.using_ints, aten.view.default, aten.reshape.default,
    aten.transpose.int, aten.permute.default, aten.pixel_unshuffle.default, aten.upsample_nearest2d.vec,
    aten.upsample_bilinear2d.vec, aten.upsample_bicubic2d.vec,
}  # fmt: skip


def movable_means(graph: GraphModule) -> tuple[Node, ...]:
    """The layers whose outputs may have any constant less in each channel, in order."""
    handed_on = set[Node]()
    for node in reversed(graph.graph.nodes):
        if node.users and all(
            _makes_up(node, user) if is_layer(user) else user in handed_on and _is_additive(user) for user in node.users
        ):
            handed_on.add(node)
    return tuple(node for node in graph.graph.nodes if node in handed_on and is_layer(node) and owns_parameters(node))


@torch.no_grad()
def means_of(graph: GraphModule, layers: Collection[Node], images: Tensor) -> dict[Node, Tensor]:
    """Mean of each channel that layers yield.

    Args:
        images: float32 [N, C, H, W].
    """
    watcher = _Means(graph, layers)
    watcher.run(images)
    return watcher.found


@torch.no_grad()
def move_means(graph: GraphModule, means: Mapping[Node, Tensor]) -> set[Node]:
    """Let, in place, layers yield so much less, and let the biases of their readers make up for it.

    The graph is left to be recompiled.

    Args:
        means: [C] of some of the ``movable_means``.

    Returns:
        The nodes that yield less, and the layers that make up for it.
    """
    less, made_up = dict[Node, Any](), set[Node]()  # less: of one image
    for node in list(graph.graph.nodes):
        moved = not less.keys().isdisjoint(node.all_input_nodes)
        if is_layer(node) and moved:
            read, weight = arguments(node)[:2]
            yielded = node.target(less[read], attribute(graph, weight), None, *geometry(node))
            _add_to_bias(graph, node, mean_of_channels(yielded, node))
            made_up.add(node)
        elif moved:
            args = map_arg(node.args, lambda each: less[each] if each in less else _zeros(each))
            less[node] = node.target(*args, **node.kwargs)
        if node in means:
            zeros = _zeros(node)
            less[node] = zeros + along_channels(means[node], node, zeros)
            _add_to_bias(graph, node, -means[node])
    return less.keys() | made_up


def _add_to_bias(graph: GraphModule, layer: Node, change_C: Tensor) -> None:
    bias = ensure_bias(graph, layer)
    set_attribute(graph, str(bias.target), attribute(graph, bias) + change_C)


def _zeros(node: Node) -> Tensor:
    """One image's part of what a node yields."""
    return torch.zeros(1, *node.meta["val"].shape[1:])


def _is_additive(node: Node) -> bool:
    if node.target not in _ADDITIVE or any(isinstance(each, Node) for each in _settings(node)):
        return False
    if node.target == aten.add.Tensor:
        shapes = [each.meta["val"].shape for each in node.args if isinstance(each, Node)]
        return len(shapes) == 2 and shapes[0][1:] == shapes[1][1:] and not node.kwargs
    if node.target == aten.avg_pool2d.default:
        _, _, _, padding, _, counts_zeros, *_ = with_defaults(node)
        return not (counts_zeros and any(padding))
    if node.target == aten.mean.dim:
        return all(dim % arguments(node)[0].meta["val"].ndim > 1 for dim in arguments(node)[1])
    return True


def _settings(node: Node) -> list[Any]:
    """The arguments of an operation besides its tensors, those in lists one by one."""
    flat = list[Any]()
    for each in arguments(node)[1:]:
        flat += each if isinstance(each, list | tuple) else [each]
    return [] if node.target in (aten.add.Tensor, aten.cat.default) else flat


def _makes_up(node: Node, reader: Node) -> bool:
    """Whether the bias of a layer makes up for constants in what it reads."""
    if arguments(reader)[0] is not node or not owns_parameters(reader):
        return False
    if LAYER_KINDS[reader.target] == "linear":
        return True
    padding = geometry(reader)[1]
    return padding == "valid" if isinstance(padding, str) else not any(padding)


class _Means(Interpreter):
    def __init__(self, graph: GraphModule, layers: Collection[Node]) -> None:
        super().__init__(graph)
        self._layers = layers
        self.found: dict[Node, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n in self._layers:
            self.found[n] = mean_of_channels(result, n)
        return result
