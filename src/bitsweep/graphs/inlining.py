"""Regions of a network that were traced as graphs of their own, within the graph around them."""

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from bitsweep.errors import CompressionError

_GRADIENTS = torch.ops.higher_order.wrap_with_set_grad_enabled
_AUTOCAST = torch.ops.higher_order.wrap_with_autocast


def inline_regions(program: ExportedProgram) -> None:
    """Put, in place, what a network does under ``torch.enable_grad`` or ``torch.autocast`` into the graph around it.

    In evaluation the first changes nothing, nor does autocast of another device, or where it is switched off.

    Raises:
        CompressionError: the network chooses the arithmetic itself: autocast of the CPU is on.
    """
    graph = program.graph_module
    while regions := [node for node in graph.graph.nodes if node.target in (_GRADIENTS, _AUTOCAST)]:
        for region in regions:
            _inline(graph, region)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _inline(graph: GraphModule, region: Node) -> None:
    inner, *operands = region.args[1:] if region.target is _GRADIENTS else region.args[4:]
    if region.target is _AUTOCAST:
        device, dtype, enabled = region.args[:3]
        if enabled and device == "cpu":
            raise CompressionError(
                f"the network computes in {str(dtype).removeprefix('torch.')} by itself (torch.autocast): take that "
                "out of its forward; train.autocast trains in half precision, precision=bf16 measures it"
            )
    assert isinstance(inner, Node)
    body = graph.get_submodule(str(inner.target))
    assert isinstance(body, GraphModule)
    copies: dict[Node, Any] = dict(zip(body.graph.find_nodes(op="placeholder"), operands, strict=True))
    outputs: Any = ()
    for node in body.graph.nodes:
        if node.op == "output":
            outputs = torch.fx.node.map_arg(node.args[0], copies.__getitem__)
        elif node not in copies:
            with graph.graph.inserting_before(region):
                copies[node] = graph.graph.node_copy(node, copies.__getitem__)
            if node.op == "get_attr":  # a region within
                copies[node].target = f"{inner.target}.{node.target}"
    for part in list(region.users):
        part.replace_all_uses_with(outputs[part.args[1]])
        graph.graph.erase_node(part)
    graph.graph.erase_node(region)
