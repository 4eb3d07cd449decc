"""From networks to graphs of aten operations, and from graphs to programs."""

import torch
from torch.fx import GraphModule, Node

from bitsweep.errors import CompressionError, first_line
from bitsweep.graphs.ops import aten


def trace(model: torch.nn.Module, *, image_size: int) -> GraphModule:
    """Graph of a network in evaluation mode, without dropout and without in-place operations.

    It takes any number of float32 images of H = W = ``image_size``: [N, 3, H, W].

    Raises:
        CompressionError: ``torch.export`` cannot trace the network, or a parameter is not finite.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CompressionError(f"{name} holds values that are not finite; train again with a lower learning rate")
    graph = export(model.cpu().eval(), image_size=image_size).module(check_guards=False)
    assert isinstance(graph, GraphModule)
    for node in list(graph.graph.nodes):
        if node.target in (aten.dropout.default, aten.dropout_.default):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif _writes_its_input(node):
            _replace_in_place(graph, node)
    graph.recompile()
    return graph


def export(model: torch.nn.Module, *, image_size: int) -> torch.export.ExportedProgram:
    """Program of a network or graph, with a dynamic batch and images of a fixed size.

    Raises:
        CompressionError: ``torch.export`` cannot trace the network.
    """
    images = torch.zeros(2, 3, image_size, image_size)
    try:
        with torch.no_grad():
            return torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    except Exception as error:
        reason = first_line(error)
        raise CompressionError(f"torch.export cannot trace the network at {image_size} pixels: {reason}") from error


def _writes_its_input(node: Node) -> bool:
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and node.target._schema.name.endswith("_")
        and node.target._schema.is_mutable
    )


def _is_view(node: Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or node.target._schema.is_mutable:
        return False
    return any(value.alias_info is not None for value in node.target._schema.returns)


def _replace_in_place(graph: GraphModule, node: Node) -> None:
    """Replace an operation that overwrites its input; later users of the input then take its result."""
    written = node.args[0]
    assert isinstance(written, Node)
    if _is_view(written) or any(_is_view(user) for user in written.users):
        raise CompressionError(f"{node.target} overwrites a view of a tensor; use the operation without the trailing _")
    packet = getattr(aten, node.target._schema.name.removeprefix("aten::")[:-1])  # type: ignore[union-attr]
    node.target = getattr(packet, node.target._overloadname)  # type: ignore[union-attr]
    written.replace_all_uses_with(node, delete_user_cb=lambda user: user > node)
