"""What became of each layer, read from the rewritten graph itself and not from what was asked for."""

import torch
from torch.fx import GraphModule, Node

from bitsweep.artifacts import LayerNote
from bitsweep.axes import Grid
from bitsweep.quantization import grids
from bitsweep.quantization.graphs import FLOAT_KINDS, Layer, arguments, aten, attribute, bias_of
from bitsweep.quantization.weights import quantized


def layer_notes(graph: GraphModule, originals: tuple[Layer, ...]) -> tuple[LayerNote, ...]:
    """A note on each layer of the float network that a graph was made from.

    Args:
        graph: the rewritten graph.
        originals: the layers before it was rewritten, batch normalisation folded.
    """
    nodes = {node.name: node for node in graph.graph.nodes}
    return tuple(_note(graph, nodes[layer.node], layer) for layer in originals)


def _note(graph: GraphModule, node: Node, layer: Layer) -> LayerNote:
    read, weight = arguments(node)[:2]
    values, weight_format, stored_bits = _stored(graph, weight)
    if (bias := bias_of(node)) is not None:
        stored_bits += _stored(graph, bias)[2]
    return LayerNote(
        name=layer.name,
        kind=layer.kind,
        weights=weight_format,
        activations=_activation_format(graph, read, weight),
        parameters=layer.weight.numel() + (0 if layer.bias is None else layer.bias.numel()),
        stored_bits=stored_bits,
        sqnr_db=None if torch.equal(values, layer.weight) else grids.sqnr_db(layer.weight, values),
        reason=f"nothing puts the weights of a {layer.kind} on a grid" if layer.kind in FLOAT_KINDS.values() else "",
    )


def _stored(graph: GraphModule, parameter: Node) -> tuple[torch.Tensor, str, int]:
    """What a parameter amounts to, its format, and the bits in which it is stored."""
    if parameter.target == quantized.dequantize_per_channel.default:
        read_codes, read_scale, read_zero_point, _, lo, hi, _ = arguments(parameter)
        scale, zero_point = attribute(graph, read_scale), attribute(graph, read_zero_point)
        grid = _grid(lo, hi, per_channel=True)
    elif parameter.target == quantized.dequantize_per_tensor.default:
        read_codes, scale, zero_point, lo, hi, _ = arguments(parameter)
        scale, zero_point = torch.tensor(scale), torch.tensor(zero_point)
        grid = _grid(lo, hi, per_channel=False)
    else:
        stored = attribute(graph, arguments(parameter)[0] if parameter.target == aten.to.dtype else parameter)
        return stored.float(), _name(stored.dtype), stored.numel() * stored.dtype.itemsize * 8
    codes = attribute(graph, read_codes)
    return grids.dequantize(codes, scale, zero_point), str(grid), grids.stored_bits(codes.shape, grid)


def _activation_format(graph: GraphModule, read: Node, weight: Node) -> str:
    """Format of what a layer reads: a grid, or the type in which the layer computes."""
    if read.target == quantized.dequantize_per_tensor.default:
        _, _, _, lo, hi, _ = arguments(read)
        return str(_grid(lo, hi, per_channel=False))
    return _name(attribute(graph, weight).dtype) if weight.op == "get_attr" else "float32"


def _grid(lo: int, hi: int, *, per_channel: bool) -> Grid:
    bits, symmetric = (hi - lo).bit_length(), lo == -hi
    levels = hi - lo + 1 if symmetric and hi - lo + 2 < 1 << bits else 0
    return Grid(bits=bits, signed=lo < 0, symmetric=symmetric, per_channel=per_channel, levels=levels)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
