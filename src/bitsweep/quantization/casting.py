"""Half precision in a graph: as storage of the parameters only, or as the arithmetic of the whole network."""

import torch
from torch.fx import GraphModule, Node

from bitsweep.config.precision import FloatFormat
from bitsweep.errors import CompressionError
from bitsweep.graphs.ops import aten, attribute, set_attribute


def cast(graph: GraphModule, weights: FloatFormat, activations: FloatFormat) -> None:
    """Bring, in place, a float32 network into the float formats of a scheme.

    Raises:
        CompressionError: a parameter is too large for the format.
    """
    if weights == "float32":
        return
    if activations == "float32":
        store_as(graph, getattr(torch, weights))
    else:
        compute_in(graph, getattr(torch, weights))


def store_as(graph: GraphModule, dtype: torch.dtype) -> None:
    """Keep, in place, every float parameter in ``dtype``, and cast it to float32 where it is used.

    Raises:
        CompressionError: a parameter is too large for ``dtype``.
    """
    _cast_parameters(graph, dtype)
    for node in _float_parameters(graph):
        _cast_output(graph, node, torch.float32)
    graph.recompile()


def compute_in(graph: GraphModule, dtype: torch.dtype) -> None:
    """Compute, in place, the whole network in ``dtype``; images and logits stay float32.

    Raises:
        CompressionError: a parameter is too large for ``dtype``.
    """
    _cast_parameters(graph, dtype)
    (images,) = graph.graph.find_nodes(op="placeholder")
    (output,) = graph.graph.find_nodes(op="output")
    _cast_output(graph, images, dtype)
    for logits in output.all_input_nodes:
        _cast_output(graph, logits, torch.float32)
    graph.recompile()


def _float_parameters(graph: GraphModule) -> list[Node]:
    return [node for node in graph.graph.find_nodes(op="get_attr") if attribute(graph, node).is_floating_point()]


def _cast_parameters(graph: GraphModule, dtype: torch.dtype) -> None:
    for node in _float_parameters(graph):
        value = attribute(graph, node).to(dtype)
        if not torch.isfinite(value).all():
            name = str(dtype).removeprefix("torch.")
            raise CompressionError(f"{node.target} holds values too large for {name}; choose precision=bf16")
        set_attribute(graph, str(node.target), value)


def _cast_output(graph: GraphModule, node: Node, dtype: torch.dtype) -> None:
    """Cast the output of a node before any other node takes it."""
    readers = list(node.users)
    with graph.graph.inserting_after(node):
        cast = graph.graph.call_function(aten.to.dtype, (node, dtype))
    for reader in readers:
        reader.replace_input_with(node, cast)
