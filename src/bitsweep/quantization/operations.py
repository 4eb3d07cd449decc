"""What operations compute on: codes, with integer kernels; floats; or either, where they only move or join values."""

import math
from operator import getitem
from typing import Any

import torch
from torch.fx import Node

from bitsweep.graphs.ops import ELEMENTWISE, LAYER_KINDS, aten, is_layer

RECTIFIERS = {aten.relu.default, aten.relu6.default, aten.hardtanh.default}
#: Functions of one activation, with the bounds beyond which they are constant.
FUNCTIONS: dict[Any, tuple[float, float]] = {
    aten.hardswish.default: (-3.0, math.inf),
    aten.hardsigmoid.default: (-3.0, 3.0),
    aten.relu.default: (0.0, math.inf),
    aten.relu6.default: (0.0, 6.0),
    aten.hardtanh.default: (-math.inf, math.inf),
    aten.silu.default: (-math.inf, math.inf),
    aten.sigmoid.default: (-math.inf, math.inf),
    aten.gelu.default: (-math.inf, math.inf),
    aten.leaky_relu.default: (-math.inf, math.inf),
    aten.adaptive_avg_pool2d.default: (-math.inf, math.inf),
    aten.avg_pool2d.default: (-math.inf, math.inf),
    aten.mean.dim: (-math.inf, math.inf),
}
#: Those that repeat rows and columns.
ENLARGEMENTS = {aten.upsample_nearest2d.vec, aten._upsample_nearest_exact2d.vec}
#: Operations whose output values are input values.
MOVES = {
    aten.max_pool2d.default,
    aten.flatten.using_ints,
    aten.view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.squeeze.dim,
    aten.unsqueeze.default,
    aten.contiguous.default,
    aten.slice.Tensor,
    *ENLARGEMENTS,
}
#: Those that are computed anew for each image, and so stay operations of their own.
NORMALISATIONS = {aten.layer_norm.default, aten.group_norm.default}
PAIRS = {aten.add.Tensor, aten.mul.Tensor}
#: Operations that yield parts of what they read, which are not on codes.
_PARTS = {aten.unbind.int, aten.select.int, aten.split.Tensor, aten.chunk.default, aten.unflatten.int, getitem}
#: Functions that engines compute in float.
SMOOTH = frozenset(ELEMENTWISE - RECTIFIERS)


def computed_on_sums(node: Node) -> bool:
    """Whether a node is a layer that a smooth function alone reads."""
    if node.target not in LAYER_KINDS or len(node.users) != 1:
        return False
    (user,) = node.users
    return user.target in SMOOTH


def adds_or_multiplies_codes(node: Node) -> bool:
    """Whether a node is a sum or a product of two activations that is computed on codes."""
    return (
        node.target in PAIRS
        and all(map(is_activation, node.args[:2]))
        and not (node.target == aten.add.Tensor and any(map(_in_residual_stream, (node, *_sums(node)))))
        and not ends_in_floats(node)
    )


def _sums(node: Node) -> list[Node]:
    """The terms of a sum that are sums."""
    return [term for term in node.all_input_nodes if term.target == aten.add.Tensor]


def computes_function_on_codes(node: Node) -> bool:
    """Whether a node is a function of one activation that is computed on codes."""
    return node.target in FUNCTIONS and is_activation(node.args[0]) and not ends_in_floats(node)


def _in_residual_stream(node: Node) -> bool:
    """Whether a normalisation, or a sum that one reads, reads a tensor as it is, moved, in parts or joined."""
    return any(
        user.target in NORMALISATIONS
        or (user.target == aten.add.Tensor and all(map(is_activation, user.args[:2])) and _in_residual_stream(user))
        or (_passes_on(user) and _in_residual_stream(user))
        for user in node.users
    )


def passes_floats(node: Node) -> bool:
    """Whether a node moves or joins values, and yields floats.

    What is joined in a residual stream does: the token of the class and those of the image may be far apart in range.
    """
    if node.target == aten.cat.default and _in_residual_stream(node):
        return True
    return (moves(node) or node.target == aten.cat.default) and ends_in_floats(node) and not _shares_codes(node)


def _shares_codes(node: Node) -> bool:
    """Whether a node reads codes, and OpenVINO would compute otherwise if it read floats.

    So it does where others read the codes, too; and where they are padded, it pads with the code 0, which is not zero.
    """
    alone = [] if node.target == aten.pad.default else [each for each in node.all_input_nodes if len(each.users) == 1]
    known = (each.meta.get("quantization_annotation") for each in node.all_input_nodes if each not in alone)
    return any(annotation is not None and annotation.output_qspec is not None for annotation in known)


def ends_in_floats(node: Node, also: frozenset[Any] = frozenset()) -> bool:
    """Whether all that reads what a node yields, as it is, moved or in parts, computes in float.

    Args:
        also: what counts as computing in float, too.
    """
    return all(
        ends_in_floats(user) if _passes_on(user) else user.target in also or not _computes_on_codes(user)
        for user in node.users
    )


def _computes_on_codes(node: Node) -> bool:
    """Whether integer engines have kernels for an operation; all others compute in float."""
    return is_layer(node) or computes_function_on_codes(node) or adds_or_multiplies_codes(node)


def _passes_on(node: Node) -> bool:
    """Whether a node yields what it reads, moved, in parts or joined."""
    return moves(node) or node.target in _PARTS or node.target == aten.cat.default


def fuses(node: Node) -> bool:
    """Whether a node is a rectifier that runs in one kernel with the operation before it."""
    if node.target not in RECTIFIERS or (node.target == aten.hardtanh.default and node.args[1:2] != (0,)):
        return False
    source = node.args[0]
    assert isinstance(source, Node)
    return len(source.users) == 1 and (source.target in LAYER_KINDS or source.target == aten.add.Tensor)


def moves(node: Node) -> bool:
    """Whether all output values of a node are input values or zeros."""
    if node.target == aten.adaptive_avg_pool2d.default:
        read, yielded = (value.meta["val"].shape[2:] for value in (node.all_input_nodes[0], node))
        return not any(count % size for size, count in zip(read, yielded, strict=True))
    if node.target == aten.pad.default:
        return node.args[3:] in ((), (None,), (0,))
    return node.target in MOVES


def makes_logits(node: Node) -> bool:
    return LAYER_KINDS[node.target] == "linear" and all(map(leads_to_logits, node.users))


def leads_to_logits(node: Node) -> bool:
    """Whether a node is the end of the network, or only moves values to there."""
    if node.op == "output":
        return True
    return (moves(node) or node.target == aten.cat.default) and all(map(leads_to_logits, node.users))


def is_activation(argument: Any) -> bool:
    """Whether an argument is a float tensor that depends on the images."""
    if not isinstance(argument, Node) or argument.op == "get_attr":
        return False
    value = argument.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()
