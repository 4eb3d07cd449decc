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

#: Images on which means are taken, at most; they are run at once.
IMAGES = 32


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
    floats = _Means(graph, layers, parameters=originals)
    floats.run(images)
    rounded = _Means(graph, layers, meant=floats.found)
    rounded.run(images)
    for layer in layers:
        shift_C = rounded.found[layer] - floats.found[layer]
        set_attribute(graph, str(biases[layer].target), (attribute(graph, biases[layer]) - shift_C).float())


class _Means(Interpreter):
    """Runs a network, and sees the means of the outputs of layers.

    Args:
        parameters: take the place of the network's own, by path.
        meant: by layer, the means that its outputs are given, [C].

    Attributes:
        found: by layer, the means that its outputs had, float64 [C].
    """

    def __init__(
        self,
        graph: GraphModule,
        layers: Collection[Node],
        *,
        parameters: Mapping[str, Tensor] = MappingProxyType({}),
        meant: Mapping[Node, Tensor] = MappingProxyType({}),
    ) -> None:
        super().__init__(graph)
        self._parameters, self._meant = parameters, meant
        self.found = dict.fromkeys(layers, torch.empty(0))

    def run_node(self, n: Node) -> Any:
        if n.op == "get_attr" and n.target in self._parameters:
            return self._parameters[str(n.target)]
        result = super().run_node(n)
        if n not in self.found:
            return result
        axis = result.ndim - 1 if LAYER_KINDS[n.target] == "linear" else 1
        within = [dim for dim in range(1, result.ndim) if dim != axis]
        self.found[n] = (result.mean(within) if within else result).double().mean(0)
        if n not in self._meant:
            return result
        shift_C = (self.found[n] - self._meant[n]).float()
        return result - shift_C.view([-1 if dim == axis else 1 for dim in range(result.ndim)])
