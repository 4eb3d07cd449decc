"""A convolution as a product of matrices: weights [G, O, I] times patches of its input [G, I, P].

Shape letters: G groups, O output channels of a group, I inputs of an output (channels of a group times kernel), P
positions in all images. A linear layer has one group and a position for each image.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from bitsweep.graphs.ops import LAYER_KINDS, arguments


def weight_matrix(weight: Tensor, groups: int) -> Tensor:
    """Weights [G O, ...] as [G, O, I]."""
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def by_group(qparam: Tensor, groups: int) -> Tensor:
    """Scale or zero point of each channel [G O] or of the layer [], as [G, O, 1] or [1, 1, 1]."""
    return qparam.reshape(groups if qparam.ndim else 1, -1, 1)


def groups_of(layer: Node) -> int:
    """Number of groups of a layer."""
    return 1 if LAYER_KINDS[layer.target] == "linear" else int(geometry(layer)[3])


def geometry(layer: Node) -> tuple[Any, ...]:
    """Stride, padding, dilation and groups of a convolution; nothing for a linear layer."""
    assert isinstance(layer.target, torch._ops.OpOverload)
    defaults = [argument.default_value for argument in layer.target._schema.arguments[len(layer.args) :]]
    return (*arguments(layer), *defaults)[3:]


def patches(x: Tensor, layer: Node, weight: Tensor) -> Tensor:
    """What each output of a layer is a weighted sum of.

    Args:
        x: input of the layer, [N, C, ...], or [..., I] for a linear one.
        weight: of the layer; its shape gives the kernel size.

    Returns:
        [G, I, P], on the layer's own stride, padding and dilation.
    """
    if LAYER_KINDS[layer.target] == "linear":
        return x.reshape(1, -1, x.shape[-1]).mT
    stride, padding, dilation, groups = geometry(layer)
    kernel = tuple(weight.shape[2:])
    if x.ndim == 3:  # conv1d: a picture of height 1
        x, kernel = x[:, :, None], (1, *kernel)
        stride, dilation = (1, *stride), (1, *dilation)
        padding = padding if isinstance(padding, str) else (0, *padding)
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        (top, left), (bottom, right) = [t // 2 for t in total], [t - t // 2 for t in total]
        x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
    columns = F.unfold(x, tuple(kernel), dilation=dilation, padding=padding, stride=stride)  # [N, C K, L]
    N, _, L = columns.shape
    return columns.reshape(N, groups, -1, L).permute(1, 2, 0, 3).reshape(groups, -1, N * L)


def gram(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum of A B^T over pairs of patches [G, I, P], as float64 [G, I, I]: memory that does not grow with the images."""
    total = None
    for a, b in pairs:
        product = (a @ b.mT).double()
        total = product if total is None else total.add_(product)
    assert total is not None
    return total
