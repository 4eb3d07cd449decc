"""Parallel depthwise convolutions whose sum is one: branches that networks have for their training.

Convolutions are linear. With kernels K and L that read the same image, K padded as far as L is,

    K * x + L * x = (K + L) * x,    K * x + f x = (K + f I) * x,

where I is the kernel that leaves a channel as it is. Only depthwise convolutions are merged: in others an identity is a
weight far larger than hundreds beside it, which integers of few bits then cannot tell from 0.

Paper: Ding et al., "RepVGG: Making VGG-style ConvNets Great Again" (arXiv 2101.03697), section 3.3.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from bitsweep.graphs.folding import affine_of_node
from bitsweep.graphs.ops import arguments, aten, attribute, bias_of, ensure_bias, is_layer, set_attribute, tidy

#: Arguments of a convolution after input, weight and bias, with what they are where they are left out.
_DEFAULTS: tuple[Any, ...] = ([1, 1], [0, 0], [1, 1], 1)


@dataclass(frozen=True, kw_only=True)
class _Branch:
    """A depthwise convolution, or a batch normalisation, or nothing at all.

    Attributes:
        source: what it reads.
        node: the convolution; None where there is none.
        kernel: float64 [C, 1, h, w].
        bias_C: float64.
        stride, padding, dilation: along height and width.
    """

    source: Node
    node: Node | None
    kernel: Tensor
    bias_C: Tensor
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)


def merge_parallel(graph: GraphModule) -> bool:
    """Merge, in place, two or more depthwise convolutions that read the same, and whose sum alone is read.

    What they read, or a batch normalisation of that, may be a term, too. Where it is added to one convolution alone it
    stays, for it may be a residual stream.

    Args:
        graph: in normal form, with batch normalisations folded into layers.

    Returns:
        Whether there were any.
    """
    found = False
    for total in graph.graph.find_nodes(op="call_function", target=aten.add.Tensor):
        terms = [] if _is_term(total) else _terms(total)
        branches = [branch for branch in (_convolution(graph, each) for each in terms) if branch is not None]
        if len(branches) < 2:
            continue
        branches += [_affine(graph, term, branches[0]) for term in terms if _convolution(graph, term) is None]
        branches.sort(key=lambda branch: -branch.kernel.numel())
        whole: _Branch | None = branches[0]
        for other in branches[1:]:
            whole = None if whole is None else _sum(whole, other)
        if whole is None or whole.node is None:
            continue
        bias = ensure_bias(graph, whole.node)
        set_attribute(graph, str(whole.node.args[1].target), whole.kernel.float())  # type: ignore[union-attr]
        set_attribute(graph, str(bias.target), whole.bias_C.float())
        total.replace_all_uses_with(whole.node)
        graph.graph.erase_node(total)
        found = True
    if found:
        tidy(graph)
    return found


def _is_term(total: Node) -> bool:
    """Whether a sum is a term of another."""
    return len(total.users) == 1 and next(iter(total.users)).target == aten.add.Tensor


def _terms(total: Node) -> list[Node]:
    """What a sum and the sums that are terms of it add up; nothing where a number but 0 is among it."""
    terms = list[Node]()
    for each in arguments(total):
        if isinstance(each, Node):
            nested = _terms(each) if each.target == aten.add.Tensor and _is_term(each) else [each]
            if not nested:
                return []
            terms += nested
        elif each != 0:
            return []
    return [] if total.kwargs else terms


def _convolution(graph: GraphModule, node: Node) -> _Branch | None:
    """A depthwise convolution of images whose output and parameters have one reader."""
    if node.target != aten.conv2d.default or not is_layer(node) or len(node.users) > 1:
        return None
    weight, bias = node.args[1], bias_of(node)
    assert isinstance(weight, Node)
    kernel = attribute(graph, weight)
    given = arguments(node)[3:]
    stride, padding, dilation, groups = (*given, *_DEFAULTS[len(given) :])
    read_once = all(len(each.users) == 1 for each in (weight, bias) if each is not None)
    if kernel.shape[1] != 1 or groups != len(kernel) or not read_once:
        return None
    return _Branch(
        source=node.all_input_nodes[0], node=node, kernel=kernel.double(),
        bias_C=torch.zeros(len(kernel)).double() if bias is None else attribute(graph, bias).double(),
        stride=_pair(stride), padding=_pair(padding), dilation=_pair(dilation),
    )  # fmt: skip


def _affine(graph: GraphModule, node: Node, beside: _Branch) -> _Branch:
    """What a convolution reads, as it is or as a batch normalisation alone changes it."""
    kernel, bias_C = torch.ones_like(beside.bias_C), torch.zeros_like(beside.bias_C)
    if node.target == aten.batch_norm.default and len(node.users) == 1:
        kernel, bias_C = affine_of_node(graph, node)
        (node, *_) = node.all_input_nodes
    return _Branch(source=node, node=None, kernel=kernel.view(-1, 1, 1, 1), bias_C=bias_C)


def _sum(large: _Branch, small: _Branch) -> _Branch | None:
    """Both as one convolution, in the place of that with the larger kernel; None where that cannot be."""
    if large.source is not small.source or large.stride != small.stride:
        return None
    kernel = large.kernel.clone()
    starts = list[int]()
    for axis in range(2):
        size, extent = small.kernel.shape[2 + axis], kernel.shape[2 + axis]
        step = large.dilation[axis]
        ahead = large.padding[axis] - small.padding[axis]
        behind = step * (extent - 1) - large.padding[axis] - (small.dilation[axis] * (size - 1) - small.padding[axis])
        if (size > 1 and small.dilation[axis] != step) or ahead < 0 or ahead % step or behind != ahead:
            return None
        starts.append(ahead // step)
    (top, left), (height, width) = starts, small.kernel.shape[2:]
    kernel[:, :, top : top + height, left : left + width] += small.kernel
    return _Branch(
        source=large.source, node=large.node, kernel=kernel, bias_C=large.bias_C + small.bias_C,
        stride=large.stride, padding=large.padding, dilation=large.dilation,
    )  # fmt: skip


def _pair(size: object) -> tuple[int, int]:
    """A size along height and width that may be given as one number."""
    values = size if isinstance(size, list | tuple) else (size,)
    return (values[0], values[-1])
