"""Operations of a graph, the layers among them, and their input tensors."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the operations of ``quantized``
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

aten = torch.ops.aten
#: Quantization and dequantization, the operations that Q/DQ programs are written in.
quantized = torch.ops.quantized_decomposed

#: Operations with weights that can be put on a grid; their arguments start with input, weight, bias.
LAYER_KINDS: dict[Any, str] = {
    aten.conv1d.default: "conv1d",
    aten.conv1d.padding: "conv1d",
    aten.conv2d.default: "conv2d",
    aten.conv2d.padding: "conv2d",
    aten.linear.default: "linear",
}
#: Operations with weights that nothing here puts on a grid.
FLOAT_KINDS: dict[Any, str] = {
    aten.conv3d.default: "conv3d",
    aten.conv3d.padding: "conv3d",
    aten.conv_transpose1d.default: "conv_transpose1d",
    aten.conv_transpose2d.input: "conv_transpose2d",
    aten.conv_transpose3d.input: "conv_transpose3d",
    aten.matmul.default: "matmul",
}


#: Functions of one activation, element by element.
ELEMENTWISE = {
    aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.hardswish.default, aten.hardsigmoid.default,
    aten.silu.default, aten.sigmoid.default, aten.tanh.default, aten.gelu.default, aten.leaky_relu.default,
    aten.elu.default,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Layer:
    """An operation with weights in a traced float network.

    Attributes:
        name: module path in the original network.
        kind: one of ``LAYER_KINDS`` or ``FLOAT_KINDS``.
        node: name of its node, which lasts while the graph is rewritten.
        weight, bias: its float32 parameters.
        factors: names of the nodes that were put before it when it became a chain of layers.
    """

    name: str
    kind: str
    node: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    factors: tuple[str, ...] = ()


def layers(graph: GraphModule) -> tuple[Layer, ...]:
    """The layers of a traced float network, in the order in which they run.

    What multiplies by weights that depend on the images is none.
    """
    return tuple(_layers(graph))


def arguments(node: Node) -> tuple[Any, ...]:
    """Positional arguments of a node, of which the operation alone knows the types."""
    return node.args


def with_defaults(node: Node) -> tuple[Any, ...]:
    """All arguments of an operation, by position."""
    assert isinstance(node.target, OpOverload)
    given = node.target._schema.arguments[len(node.args) :]
    return (*node.args, *(node.kwargs.get(each.name, each.default_value) for each in given))


def is_layer(node: Node) -> bool:
    """Whether a node is a convolution or linear layer, with a parameter for its weights, that can be put on a grid."""
    return node.target in LAYER_KINDS and reads_attribute(node.args[1])


def reads_attribute(argument: Any) -> bool:
    """Whether an argument of a node is a parameter or buffer."""
    return isinstance(argument, Node) and argument.op == "get_attr"


def bias_of(layer: Node) -> Node | None:
    """The node of a layer's bias, None where it has none."""
    bias = layer.args[2] if len(layer.args) > 2 else None
    return bias if isinstance(bias, Node) else None


def ensure_bias(graph: GraphModule, layer: Node) -> Node:
    """The node of a layer's bias, after giving it one of zeros where it has none."""
    if (bias := bias_of(layer)) is not None:
        return bias
    layer_input, weight, *rest = layer.args
    assert isinstance(weight, Node)
    path = free_path(graph, str(weight.target).removesuffix("weight") + "bias")
    set_attribute(graph, path, torch.zeros(attribute(graph, weight).shape[0]))
    with graph.graph.inserting_before(layer):
        bias = graph.graph.get_attr(path)
    layer.args = (layer_input, weight, bias, *rest[1:])
    return bias


def attribute(graph: GraphModule, node: Node) -> torch.Tensor:
    """The parameter or buffer of a ``get_attr`` node."""
    parent, _, name = str(node.target).rpartition(".")
    value = getattr(graph.get_submodule(parent), name)
    assert isinstance(value, torch.Tensor)
    return value.detach()


def values_of_an_image(value: torch.Tensor) -> int:
    """How many values of a tensor belong to one image, whichever of its dimensions holds the images.

    Args:
        value: as a traced graph describes it. Asking such a size for a number would fix the number of images.
    """
    return math.prod(size if isinstance(size, int) else _of_one_image(size) for size in value.shape)


def _of_one_image(size: torch.SymInt) -> int:
    """A size that depends on the number of images, where that is one."""
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))


def set_attribute(graph: GraphModule, path: str, value: torch.Tensor) -> None:
    """Create or replace the tensor at a path, as a buffer."""
    parent, _, name = path.rpartition(".")
    module = graph.get_submodule(parent)
    if hasattr(module, name):
        delattr(module, name)
    module.register_buffer(name, value.detach())


def free_path(graph: GraphModule, path: str) -> str:
    """A path for a new tensor: the one given, with a number after it where a network has something there already."""
    parent, _, name = path.rpartition(".")
    module, taken = graph.get_submodule(parent), 2
    if not hasattr(module, name):
        return path
    while hasattr(module, f"{name}_{taken}"):
        taken += 1
    return f"{path}_{taken}"


def tidy(graph: GraphModule) -> None:
    """Remove what a rewrite left: operations whose result is not used, and the tensors that nothing reads any more."""
    graph.graph.eliminate_dead_code()
    read = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for path in [*dict(graph.named_parameters()), *dict(graph.named_buffers())]:
        if path not in read:
            parent, _, name = path.rpartition(".")
            delattr(graph.get_submodule(parent), name)
    graph.recompile()


def _layers(graph: GraphModule) -> Iterator[Layer]:
    for node in graph.graph.nodes:
        kind = LAYER_KINDS.get(node.target) or FLOAT_KINDS.get(node.target)
        if kind is None or not reads_attribute(node.args[1]):
            continue
        bias = bias_of(node)
        yield Layer(
            name=str(node.args[1].target).removesuffix(".weight"),
            kind=kind,
            node=node.name,
            weight=attribute(graph, node.args[1]),
            bias=None if bias is None else attribute(graph, bias),
        )
