"""Rectifiers in one form each, however a network spells them: a ReLU, and a clamp in the form of hard-tanh."""

from typing import Any

import torch
from torch.fx import Node

from bitsweep.graphs.editing import Editor
from bitsweep.graphs.ops import arguments, aten, attribute, reads_attribute, with_defaults


def clamp(edit: Editor, node: Node, x: Node, lo: float | None, hi: float | None) -> Node | None:
    """A ReLU from 0 up; a clamp with both ends in the form of hard-tanh."""
    value = x.meta["val"]
    if not value.is_floating_point():
        return None
    if hi is not None and hi >= torch.finfo(value.dtype).max:
        hi = None
    if lo == 0 and hi is None:
        return rectify(edit, x, aten.relu.default)
    if lo is None or hi is None:
        return None
    return rectify(edit, x, aten.hardtanh.default, float(lo), float(hi))


def clamp_min(edit: Editor, node: Node, x: Node, lo: float) -> Node:
    """The same as a clamp with one end."""
    return clamp(edit, node, x, lo, None) or edit.call(aten.clamp.default, x, lo)


def clamp_max(edit: Editor, node: Node, x: Node, hi: float) -> Node:
    """The same as a clamp with one end."""
    return edit.call(aten.clamp.default, x, None, hi)


def clamp_between(edit: Editor, node: Node, x: Node, lo: Node | None, hi: Node | None) -> Node | None:
    """The same with ends that are tensors, where each holds one number."""
    ends = [None if end is None else number_in(edit, end) for end in (lo, hi)]
    if [end is None for end in ends] != [end is None for end in (lo, hi)] or not _is_like(node, x):
        return None
    return clamp(edit, node, x, *ends) or edit.call(aten.clamp.default, x, *ends)


def larger(edit: Editor, node: Node, x: Node, y: Node) -> Node | None:
    """A ReLU, where one of two tensors is 0 everywhere."""
    for one, other in ((x, y), (y, x)):
        if _is_like(node, one) and number_in(edit, other) == 0:
            return clamp(edit, node, one, 0, None)
    return None


def threshold(edit: Editor, node: Node, x: Node, least: float, otherwise: float) -> Node | None:
    """A ReLU, where what is below 0 becomes 0."""
    return clamp(edit, node, x, 0, None) if least == otherwise == 0 else None


def hardtanh(edit: Editor, node: Node, x: Node, lo: float, hi: float) -> Node:
    """With both ends given."""
    return rectify(edit, x, aten.hardtanh.default, float(lo), float(hi))


def relu(edit: Editor, node: Node, x: Node) -> Node | None:
    """Of each part where parts were joined."""
    return rectify(edit, x, node.target) if x.target == aten.cat.default else None


def rectify(edit: Editor, x: Node, operation: Any, *bounds: float) -> Node:
    """A rectifier; of parts that were joined one of each, which runs in one kernel with the layer before."""
    if x.target != aten.cat.default or len(x.users) > 1:
        return edit.call(operation, x, *bounds)
    parts, dim = with_defaults(x)
    rectified = {part: edit.call(operation, part, *bounds) for part in parts}
    return edit.call(aten.cat.default, [rectified[part] for part in parts], dim)


def number_in(edit: Editor, node: Node) -> float | None:
    """The number that a tensor holds everywhere; None where there are several, or where it depends on the images."""
    if node.target == aten.new_zeros.default:
        return 0.0
    while node.target in (aten.expand.default, aten.expand_as.default):
        node = arguments(node)[0]
    values = attribute(edit.graph, node).flatten() if reads_attribute(node) else torch.empty(0)
    return values[0].item() if len(values) and (values == values[0]).all() else None


def _is_like(node: Node, other: Node) -> bool:
    """Whether two nodes yield tensors of one shape, written down as asking could fix the number of images, and type."""
    value, like = node.meta["val"], other.meta["val"]
    return str(value.shape) == str(like.shape) and value.dtype == like.dtype
