"""Bias correction: rounding shifts the mean of a layer's output, and its bias can take that back.

Paper: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv 1906.04721),
section 4.2, in the empirical form of its appendix D.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from bitsweep.graphs.ops import LAYER_KINDS, attribute, ensure_bias, is_layer, set_attribute

#: Images on which means are taken, at most.
IMAGES = 32
#: Images that are run at a time: what a layer yields for few of them is memory that the next layer finds in use.
_AT_A_TIME = 8


@torch.no_grad()
def correct_biases(
    graph: GraphModule,
    originals: Mapping[str, Tensor],
    batches: Sequence[Tensor],
    *,
    only: Collection[str] | None = None,
) -> None:
    """Correct, in place, the biases of layers in order: b -= E[y~] - E[y], each on outputs of corrected layers.

    Args:
        graph: the network with rounded weights.
        originals: parameters of the float network, by path.
        batches: calibration images, float32 [N, 3, H, W], of which evenly spread ones are taken.
        only: paths of the weights of the layers; None for all.
    """
    layers = [node for node in graph.graph.nodes if is_layer(node) and (only is None or node.args[1].target in only)]
    biases = {node: ensure_bias(graph, node) for node in layers}
    graph.recompile()
    runs = Counter(bias.target for bias in biases.values())  # what several layers share has no mean of its own
    layers = [node for node in layers if runs[biases[node].target] == 1]
    every = max(1, len(batches) * len(batches[0]) // IMAGES)
    images = torch.cat([batches[index] for index in range(0, len(batches), every)])[:IMAGES]
    floats = _means(graph, layers, images, parameters=originals)
    rounded = _means(graph, layers, images, meant=floats)
    for layer in layers:
        shift_C = rounded[layer] - floats[layer]
        set_attribute(graph, str(biases[layer].target), (attribute(graph, biases[layer]) - shift_C).float())


def _means(
    graph: GraphModule,
    layers: Collection[Node],
    images: Tensor,
    *,
    parameters: Mapping[str, Tensor] = MappingProxyType({}),
    meant: Mapping[Node, Tensor] = MappingProxyType({}),
) -> dict[Node, Tensor]:
    """The means that the outputs of layers have over all images, float64 [C].

    Args:
        parameters: take the place of the network's own, by path.
        meant: by layer, the means that its outputs are given before the next layer reads them, [C].
    """
    parts = [_Part(graph, parameters, some) for some in torch.split(images, _AT_A_TIME)]
    found = {}
    for node in graph.graph.nodes:
        results = [part.step(node) for part in parts]
        if node not in layers:
            continue
        dims = results[0].ndim
        axis = dims - 1 if LAYER_KINDS[node.target] == "linear" else 1
        within = [dim for dim in range(1, dims) if dim != axis]
        means_NC = torch.cat([result.mean(within) if within else result for result in results])
        found[node] = means_NC.double().mean(0)
        if node in meant:
            shift_C = (found[node] - meant[node]).float().view([-1 if dim == axis else 1 for dim in range(dims)])
            for part in parts:
                part.env[node] -= shift_C
    return found


class _Part(Interpreter):
    """Runs a network on some of the images, an operation at a time."""

    def __init__(self, graph: GraphModule, parameters: Mapping[str, Tensor], images: Tensor) -> None:
        super().__init__(graph)
        self._parameters = parameters
        self.args_iter = iter((images,))

    def step(self, node: Node) -> Any:
        """What the next operation yields."""
        self.env[node] = result = self.run_node(node)
        for last_read in self.user_to_last_uses.get(node, ()):
            del self.env[last_read]
        return result

    def run_node(self, n: Node) -> Any:
        if n.op == "get_attr" and n.target in self._parameters:
            return self._parameters[str(n.target)]
        return super().run_node(n)
