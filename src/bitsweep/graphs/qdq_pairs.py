"""Pairs of quantization and dequantization as arithmetic on the float tensor itself: the same values, no codes between.

Codes are whole numbers below 2^24, which float32 holds exactly. So with scale s, zero point z and codes from l to h

    (clamp(round(x / s) + z, l, h) - z) s = clamp(round(x / s), l - z, h - z) s

to the last bit, but for the sign of a zero.
"""

import torch
from torch.fx import GraphModule, Node

from bitsweep.graphs.ops import quantized


def fuse_pairs(graph: GraphModule) -> None:
    """Replace, in place, each quantization that only dequantizations read by one function of its float32 input.

    Those with a range a channel, or with ranges chosen while the program runs, stay as they are.
    """
    for node in graph.graph.find_nodes(op="call_function", target=quantized.quantize_per_tensor.default):
        if not _is_pair(node):
            continue
        with graph.graph.inserting_before(node):
            fused = graph.graph.call_function(round_to_grid, node.args[:-1])
        for dequantization in list(node.users):
            fused.meta["val"] = dequantization.meta.get("val")
            dequantization.replace_all_uses_with(fused)
            graph.graph.erase_node(dequantization)
        graph.graph.erase_node(node)
    graph.recompile()


def round_to_grid(x: torch.Tensor, scale: float, zero_point: int, lo: int, hi: int) -> torch.Tensor:
    """Values of the codes nearest to ``x``: of ties the even one, beyond the ends the last one."""
    return x.mul(1.0 / scale).round_().clamp_(lo - zero_point, hi - zero_point).mul_(scale)


def _is_pair(quantization: Node) -> bool:
    """Whether a quantization of float32 is undone by all that read it."""
    (source,) = quantization.all_input_nodes
    value = source.meta.get("val")
    return (
        isinstance(value, torch.Tensor)
        and value.dtype == torch.float32
        and all(
            user.target == quantized.dequantize_per_tensor.default
            and user.args == (quantization, *quantization.args[1:])
            and not user.kwargs
            for user in quantization.users
        )
    )
