"""Biases as 32-bit codes, in units of the products that an integer kernel adds them to.

A layer with inputs as codes of scale s_x, and weights as codes of scale s_w, sums products of unit s_x s_w. Its bias is
b_q = round(b / (s_x s_w)), for each output channel where the weights have a scale for each.

Paper: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
(arXiv 1712.05877), section 2.4.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from bitsweep.graphs.ops import (
    LAYER_KINDS,
    arguments,
    attribute,
    bias_of,
    is_layer,
    quantized,
    set_attribute,
    tidy,
)
from bitsweep.quantization.weights import Codes

#: Largest code of a bias; leaves room in 32 bits for the sum of products that it is added to.
LARGEST_CODE = 2**30
_INT32 = torch.iinfo(torch.int32)


def bias_codes(bias: Tensor, *, x_scale: float, weight: Codes) -> tuple[Tensor, Codes]:
    """Codes of a bias, and the weights on a scale that these fit.

    Where weights are so small beside their bias that its codes would exceed 2^30, their scale is enlarged until they do
    not.

    Args:
        bias: float32 [C].
        x_scale: of the layer's input.

    Returns:
        int32 codes [C] of the bias, and the weights.
    """
    # A little above the limit's own scale, so that rounding to float32 cannot exceed the limit.
    least = bias.abs().double() / (x_scale * LARGEST_CODE) * (1 + 2.0**-20)
    scale = torch.maximum(weight.scale, (least if weight.scale.ndim else least.max()).float())
    if not torch.equal(scale, weight.scale):
        along = (-1, *[1] * (weight.codes.ndim - 1)) if scale.ndim else ()
        middle = weight.zero_point.double().reshape(along)
        shrunk = (weight.codes.double() - middle) * (weight.scale.double() / scale.double()).reshape(along)
        weight = replace(weight, codes=(shrunk.round() + middle).to(weight.codes.dtype), scale=scale)
    return torch.round(bias.double() / (x_scale * scale.double())).to(torch.int32), weight


def store_biases(graph: GraphModule, codes: Mapping[str, Codes]) -> dict[str, Codes]:
    """Let, in place, the layers whose inputs are codes of up to 8 bits take their biases from codes.

    Wider codes have sums that 32 bits do not hold; no engine takes them, and their biases stay float.

    Args:
        graph: with quantized activations; its layers still have float weights.
        codes: of the weights, by their path.

    Returns:
        The codes of the weights, on scales that the biases fit.
    """
    fitted = dict(codes)
    for layer in [node for node in graph.graph.nodes if is_layer(node)]:
        read, weight = arguments(layer)[:2]
        bias, path = bias_of(layer), str(weight.target)
        if bias is None or path not in codes or read.target != quantized.dequantize_per_tensor.default:
            continue
        _, x_scale, _, lo, hi, _ = arguments(read)
        if (hi - lo).bit_length() > 8 or fitted[path].grid.bits > 8:
            continue
        chosen, fitted[path] = bias_codes(attribute(graph, bias), x_scale=x_scale, weight=fitted[path])
        with graph.graph.inserting_before(layer):
            layer.replace_input_with(bias, _dequantize(graph, layer, chosen, x_scale * fitted[path].scale.double()))
    tidy(graph)
    return fitted


def with_biases_of(program: ExportedProgram, other: ExportedProgram) -> GraphModule:
    """The graph of a program, with the float biases that another program of the same network has."""
    graph, source = (each.module(check_guards=False) for each in (program, other))
    assert isinstance(graph, GraphModule) and isinstance(source, GraphModule)
    layers = ([node for node in each.graph.nodes if node.target in LAYER_KINDS] for each in (graph, source))
    for layer, original in zip(*layers, strict=True):
        bias, meant = bias_of(layer), bias_of(original)
        if bias is not None and meant is not None:
            path = f"{layer.name}_float_bias"
            set_attribute(graph, path, attribute(source, meant))
            with graph.graph.inserting_before(layer):
                layer.replace_input_with(bias, graph.graph.get_attr(path))
    graph.recompile()
    return graph


def _dequantize(graph: GraphModule, layer: Node, codes: Tensor, scale: Tensor) -> Node:
    set_attribute(graph, f"{layer.name}_bias_codes", codes)
    read_codes = graph.graph.get_attr(f"{layer.name}_bias_codes")
    limits = (_INT32.min, _INT32.max, torch.int32)
    if not scale.ndim:
        return graph.graph.call_function(
            quantized.dequantize_per_tensor.default, (read_codes, scale.item(), 0, *limits)
        )
    set_attribute(graph, f"{layer.name}_bias_scale", scale.float())
    set_attribute(graph, f"{layer.name}_bias_zero_point", torch.zeros(len(scale), dtype=torch.int32))
    qparams = (graph.graph.get_attr(f"{layer.name}_bias_{part}") for part in ("scale", "zero_point"))
    return graph.graph.call_function(quantized.dequantize_per_channel.default, (read_codes, *qparams, 0, *limits))
