"""Bias correction: rounding shifts the mean of a layer's output, and its bias can take that back.

Paper: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv 1906.04721),
section 4.2, in the empirical form of its appendix D.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from bitsweep.graphs.ops import LAYER_KINDS, attribute, ensure_bias, is_layer, set_attribute
from bitsweep.quantization.layerwise import Unit, layerwise, outputs, parameters_of


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
        batches: calibration images, float32 [N, 3, H, W].
        only: paths of the weights of the layers; None for all.
    """
    corrected = [node for node in graph.graph.nodes if is_layer(node) and (only is None or node.args[1].target in only)]
    biases = {node: ensure_bias(graph, node) for node in corrected}
    graph.recompile()
    floats = {**parameters_of(graph), **originals}
    units = [Unit(nodes=(layer,)) for layer in corrected]
    for given in layerwise(graph, units, batches, originals=floats):
        (layer,) = given.unit.nodes
        axis = -1 if LAYER_KINDS[layer.target] == "linear" else 1
        before = _mean(torch.cat(outputs(given.unit, given.inputs, floats)), axis)
        after = _mean(torch.cat(outputs(given.unit, given.rounded_inputs, parameters_of(graph))), axis)
        set_attribute(graph, str(biases[layer].target), (attribute(graph, biases[layer]) - (after - before)).float())


def _mean(x: Tensor, axis: int) -> Tensor:
    """Mean of each channel, float64 [C]."""
    return x.movedim(axis, 0).flatten(1).double().mean(1)
