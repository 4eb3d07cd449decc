"""A traced network in the operations that everything after it knows, each of them in one form.

- No operation overwrites a tensor, none draws random numbers, and none is there for training alone.
- What depends on parameters alone is a parameter: weights that are standardized or normalised while the network runs,
  say. A layer with such weights is known by the path of its module.
- Arguments that engines disagree on, or that few of them take, are written out as operations of their own.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from bitsweep.errors import CompressionError
from bitsweep.graphs import poolings, rectifiers
from bitsweep.graphs.attention import with_one_dimension_of_heads
from bitsweep.graphs.constants import fold_constants, fold_what_images_share
from bitsweep.graphs.editing import Editor
from bitsweep.graphs.in_place import functional_graph
from bitsweep.graphs.inlining import inline_regions
from bitsweep.graphs.ops import (
    FLOAT_KINDS,
    LAYER_KINDS,
    aten,
    attribute,
    reads_attribute,
    set_attribute,
    tidy,
    with_defaults,
)

#: Operations that yield what they read, in evaluation or since nothing overwrites a tensor.
IDENTITIES = {
    aten.alias.default, aten.clone.default, aten.contiguous.default, aten.detach.default, aten.lift_fresh.default,
    aten.lift_fresh_copy.default,
}  # fmt: skip
VIEWS = {
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
    aten.view_as.default: aten.reshape_as.default,
}
CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}
#: Which argument of a convolution they are.
_GROUPS = 6
DROPOUTS = {
    aten.alpha_dropout.default, aten.dropout.default, aten.feature_alpha_dropout.default, aten.feature_dropout.default,
}  # fmt: skip


def normal_form(program: ExportedProgram) -> GraphModule:
    """Graph of a traced network in normal form.

    Raises:
        CompressionError: the network draws random numbers, calls a transformed function, or chooses its arithmetic.
    """
    inline_regions(program)
    for node in program.graph.nodes:
        if getattr(node.target, "__module__", "").startswith("torch._functorch"):
            raise CompressionError(
                f"{_module_path(node) or 'the network'} calls a transformed function (torch.vmap, torch.func.grad, ..."
                "), which no program can hold; write it out for all images at once"
            )
    graph = functional_graph(program)
    drop_identities(graph)
    fold_constants(graph)
    fold_what_images_share(graph)
    name_computed_weights(graph)
    for node in list(graph.graph.nodes):
        rewrite = REWRITES.get(node.target)
        result = rewrite(Editor(graph, node), node, *with_defaults(node)) if rewrite else None
        if result is not None:
            replace(node, result)
    tidy(graph)
    for node in graph.graph.nodes:
        if _draws(node):
            raise CompressionError(
                f"{place_of(node)} draws random numbers in evaluation; use dropout(training=self.training), and "
                "MaxPool2d instead of FractionalMaxPool2d"
            )
    return graph


def _draws(node: Node) -> bool:
    """Whether a node yields something else in every run."""
    if not isinstance(node.target, OpOverload) or torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    named = dict(zip((each.name for each in node.target._schema.arguments), with_defaults(node), strict=True))
    return bool(named.get("dropout_p", True)) and bool(named.get("train", True))


def place_of(node: Node) -> str:
    """Where a node comes from, for messages: the path of its module, else its own name, and its operation."""
    return f"{_module_path(node) or node.name} ({node.target})"


def refuse_groups_of_images(node: Node, taker: str) -> None:
    """Refuse a convolution whose groups are the images of the batch, for whom a number of groups is a constant.

    Raises:
        CompressionError: it is one.
    """
    if node.target in CONVOLUTIONS and isinstance(with_defaults(node)[_GROUPS], Node):
        raise CompressionError(
            f"{place_of(node)} has as many groups as there are images, which {taker} does not take; use backend=torch "
            "with a float precision, or backend=reference"
        )


def _module_path(node: Node) -> str:
    """Path of the module that a node was traced in; empty for the network itself."""
    modules = [str(path) for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return modules[-1].removeprefix("L['self']").lstrip(".") if modules else ""


def replace(node: Node, result: Node) -> None:
    """Put a node in the place of another, or of the first part of what that yields where this is taken apart."""
    parts = [user for user in node.users if user.target is operator.getitem]
    for replaced in (*parts, *([] if parts else [node])):
        replaced.replace_all_uses_with(result)
        node.graph.erase_node(replaced)
    if parts:
        node.graph.erase_node(node)


def drop_identities(graph: GraphModule) -> None:
    """Remove, in place, operations that yield what they read, and checks.

    Since copies that lie in memory in order are among them, views become reshapes.
    """
    for node in list(graph.graph.nodes):
        if node.target in IDENTITIES or _is_whole_slice(node) or _is_idle_dropout(node):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif node.target == aten.cat.default and len(node.args[0]) == 1:
            node.replace_all_uses_with(node.args[0][0])
            graph.graph.erase_node(node)
        elif node.target in VIEWS:
            node.target = VIEWS[node.target]
        elif isinstance(node.target, OpOverload) and not node.target._schema.returns:
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()


def _is_idle_dropout(node: Node) -> bool:
    return node.target in DROPOUTS and not with_defaults(node)[2]


def _is_whole_slice(node: Node) -> bool:
    if node.target != aten.slice.Tensor:
        return False
    _, _, start, end, step = with_defaults(node)
    return start in (0, None) and end in (None, 2**63 - 1) and step == 1


def name_computed_weights(graph: GraphModule) -> None:
    """Let, in place, weights that were computed have the path that they would have in their module."""
    taken = {str(node.target) for node in graph.graph.find_nodes(op="get_attr")}
    for layer in [node for node in graph.graph.nodes if node.target in LAYER_KINDS or node.target in FLOAT_KINDS]:
        weight = layer.args[1]
        if not reads_attribute(weight) or not str(weight.target).startswith("folded_"):
            continue
        names = (".".join(filter(None, (_module_path(layer), name))) for name in ("weight", f"{layer.name}_weight"))
        path = next(name for name in names if name not in taken)
        taken.add(path)
        value = attribute(graph, weight)
        _ensure_module(graph, path.rpartition(".")[0])
        set_attribute(graph, path, value)
        with graph.graph.inserting_before(weight):
            named = graph.graph.get_attr(path)
        named.meta["val"] = weight.meta.get("val")
        weight.replace_all_uses_with(named)
    graph.graph.eliminate_dead_code()


def _ensure_module(graph: GraphModule, path: str) -> None:
    """A module at a path, in which parameters can be."""
    module: torch.nn.Module = graph
    for name in filter(None, path.split(".")):
        if not hasattr(module, name):
            module.add_module(name, torch.nn.Module())
        module = getattr(module, name)


# --------------------------------------------------------------------------- one operation in terms of others


def leaky_relu_of_rrelu(
    edit: Editor, node: Node, x: Node, lower: float, upper: float, training: bool, generator: Any
) -> Node | None:
    """In evaluation, the mean slope."""
    return None if training else edit.call(aten.leaky_relu.default, x, (lower + upper) / 2)


def fill(edit: Editor, node: Node, x: Node, value: Node) -> Node | None:
    """A number instead of a tensor that holds one."""
    if not reads_attribute(value):
        return None
    return edit.call(aten.full_like.default, x, attribute(edit.graph, value).item())


def pad_around(edit: Editor, node: Node, x: Node, sizes: Sequence[int], mode: str, value: float | None) -> Node | None:
    """Where an axis goes on from its other end, parts of it are joined: few engines can do this themselves."""
    if mode != "circular":
        return None
    for index in range(0, len(sizes), 2):
        before, after = sizes[index : index + 2]
        dim = x.meta["val"].ndim - 1 - index // 2
        size = int(x.meta["val"].shape[dim])
        parts = [edit.call(aten.slice.Tensor, x, dim, size - before, size)] if before else []
        parts += [x, *([edit.call(aten.slice.Tensor, x, dim, 0, after)] if after else [])]
        x = edit.call(aten.cat.default, parts, dim) if len(parts) > 1 else x
    return x


def squeeze(edit: Editor, node: Node, x: Node) -> Node:
    """Without the dimensions that are 1; that of the images stays."""
    dims = [dim for dim, size in enumerate(x.meta["val"].shape) if isinstance(size, int) and size == 1]
    return edit.call(aten.squeeze.dims, x, dims) if dims else x


def slices(edit: Editor, node: Node, x: Node, how: Any, dim: int) -> None:
    """A slice for each part that is read, where their sizes are fixed: it moves codes as any operation that moves."""
    start = 0
    for index, part in enumerate(node.meta["val"]):
        size = part.shape[dim]
        if not isinstance(size, int):
            return
        for user in [user for user in node.users if user.args[1] == index]:
            user.replace_all_uses_with(edit.call(aten.slice.Tensor, x, dim % part.ndim, start, start + size))
            node.graph.erase_node(user)
        start += size


def narrow(edit: Editor, node: Node, x: Node, dim: int, start: int, length: int) -> Node | None:
    """A slice."""
    if isinstance(start, Node) or isinstance(length, Node):
        return None
    ndim = x.meta["val"].ndim
    start %= x.meta["val"].shape[dim]
    return edit.call(aten.slice.Tensor, x, dim % ndim, start, start + length)


def channel_shuffle(edit: Editor, node: Node, x: Node, groups: int) -> Node:
    """Channels in two dimensions, which are swapped."""
    _, channels, *sizes = x.meta["val"].shape
    grouped = edit.call(aten.reshape.default, x, [-1, groups, channels // groups, *sizes])
    swapped = edit.call(aten.transpose.int, grouped, 1, 2)
    return edit.call(aten.reshape.default, swapped, [-1, channels, *sizes])


def copy(edit: Editor, node: Node, x: Node, source: Node, waits: bool = False) -> Node:
    """What is copied, in the shape and type of what it is copied over: that operation has no derivative."""
    before, after = x.meta["val"], source.meta["val"]
    if before.dtype != after.dtype:
        source = edit.call(aten.to.dtype, source, before.dtype)
    return source if str(before.shape) == str(after.shape) else edit.call(aten.expand_as.default, source, x)


REWRITES: dict[Any, Callable[..., Node | None]] = {
    aten.rrelu.default: leaky_relu_of_rrelu,
    aten.clamp.default: rectifiers.clamp,
    aten.clip.default: rectifiers.clamp,
    aten.clamp_min.default: rectifiers.clamp_min,
    aten.clamp_max.default: rectifiers.clamp_max,
    aten.clamp.Tensor: rectifiers.clamp_between,
    aten.clip.Tensor: rectifiers.clamp_between,
    aten.maximum.default: rectifiers.larger,
    aten.max.other: rectifiers.larger,
    aten.threshold.default: rectifiers.threshold,
    aten.fill.Tensor: fill,
    aten.copy.default: copy,
    aten.hardtanh.default: rectifiers.hardtanh,
    aten.relu.default: rectifiers.relu,
    aten.relu6.default: rectifiers.relu,
    aten.pad.default: pad_around,
    aten.scaled_dot_product_attention.default: with_one_dimension_of_heads,
    aten.avg_pool1d.default: poolings.average,
    aten.avg_pool2d.default: poolings.average,
    aten.max_pool1d.default: poolings.max_of_padded,
    aten.max_pool2d.default: poolings.max_of_padded,
    aten.adaptive_max_pool1d.default: poolings.adaptive_max,
    aten.adaptive_max_pool2d.default: poolings.adaptive_max,
    aten.squeeze.default: squeeze,
    aten.narrow.default: narrow,
    aten.channel_shuffle.default: channel_shuffle,
    aten.chunk.default: slices,
    aten.split.Tensor: slices,
    aten.split_with_sizes.default: slices,
    aten.tensor_split.sections: slices,
    aten.tensor_split.indices: slices,
}
