"""Dynamic quantization: the range of a linear layer's input is that of each batch, found while it runs.

With x_lo = min(0, min x) and x_hi = max(0, max x) of a batch, s = (x_hi - x_lo) / 255 and z = round(-x_lo / s), the
layer takes s (clamp(round(x / s) + z, 0, 255) - z): nothing is clipped, and no images are needed for calibration.

The ranges are those of the whole batch: an image's logits depend a little on the images beside it.
"""

import operator

from torch.fx import GraphModule, Node

from bitsweep.config.precision import Grid
from bitsweep.graphs.ops import LAYER_KINDS, Layer, is_layer, quantized, values_of_an_image
from bitsweep.quantization.grids import storage_dtype

#: Least scale, for batches of zeros; its reciprocal is finite.
LEAST_SCALE = 2.0**-120


def linear_layers(graph: GraphModule) -> tuple[Node, ...]:
    """The layers whose activations can be quantized at run time."""
    return tuple(node for node in graph.graph.nodes if is_layer(node) and LAYER_KINDS[node.target] == "linear")


def quantize_reads(graph: GraphModule, grid: Grid) -> None:
    """Let, in place, linear layers take codes whose scale and zero point are chosen at run time.

    Args:
        grid: unsigned, affine, per-tensor.
    """
    limits = (grid.lo, grid.hi)
    dtype = storage_dtype(grid)
    dequantized: dict[Node, Node] = {}
    for layer in linear_layers(graph):
        x = layer.args[0]
        assert isinstance(x, Node)
        if x not in dequantized:
            with graph.graph.inserting_before(layer):
                call = graph.graph.call_function
                chosen = call(quantized.choose_qparams.tensor, (x, *limits, LEAST_SCALE, dtype))
                qparams = tuple(call(operator.getitem, (chosen, part)) for part in range(2))
                codes = call(quantized.quantize_per_tensor.tensor, (x, *qparams, *limits, dtype))
                dequantized[x] = call(quantized.dequantize_per_tensor.tensor, (codes, *qparams, *limits, dtype))
        layer.args = (dequantized[x], *layer.args[1:])
    graph.recompile()


def macs(graph: GraphModule, layer: Layer) -> int:
    """Multiply-accumulates of a layer for one image: the weights, once for every position that they are applied to.

    Args:
        graph: the traced float network.
    """
    (node,) = (node for node in graph.graph.nodes if node.name == layer.node)
    # A transposed convolution applies its weights to every input position, all others to every output position.
    placed = node.all_input_nodes[0] if "transpose" in layer.kind else node
    values = placed.meta["val"]
    channels = int(values.shape[1 if "conv" in layer.kind else -1])
    return values_of_an_image(values) // channels * layer.weight.numel()
