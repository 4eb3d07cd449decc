"""Poolings in terms of those that all engines take and agree on."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from bitsweep.graphs.editing import Editor
from bitsweep.graphs.ops import aten, with_defaults

#: What is below it stands for minus infinity: no value of a feature map is.
_LOWEST = -1e30


@dataclass(frozen=True, kw_only=True)
class _Windows:
    """The windows of a pooling along one axis.

    Attributes:
        size: values along the axis.
        count: windows.
    """

    size: int
    count: int
    kernel: int
    stride: int
    padding: int

    @property
    def overhang(self) -> int:
        """Values that the last window reaches beyond those that there are; negative where it ends before them."""
        return (self.count - 1) * self.stride + self.kernel - self.padding - self.size

    def lengths(self, *, padded: bool) -> list[int]:
        """How many values each window holds, those of the padding among them or not."""
        lo, hi = (-self.padding, self.size + self.padding) if padded else (0, self.size)
        starts = [index * self.stride - self.padding for index in range(self.count)]
        return [min(start + self.kernel, hi) - max(start, lo) for start in starts]


def average(
    edit: Editor, node: Node, x: Node, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    ceil: bool, counts_padding: bool, divisor: int | None = None,
) -> Node:  # fmt: skip
    """Averages of whole windows, or of the values that there are in them.

    Zeros that count, and those that a last window reaches over, are put around by an operation of their own. A window
    that is divided by anything but its size has a factor after it.
    """
    space = node.meta["val"].ndim - 2
    kernel, padding = ([*each] * (space // len(each)) for each in (kernel, padding))
    stride = [*stride] * (space // len(stride)) if stride else kernel
    sizes, counts = (map(int, each.meta["val"].shape[2:]) for each in (x, node))
    axes = [
        _Windows(size=size, count=count, kernel=k, stride=s, padding=p)
        for size, count, k, s, p in zip(sizes, counts, kernel, stride, padding, strict=True)
    ]
    of_values = divisor is None and not (counts_padding and any(padding))
    if of_values and all(axis.overhang <= axis.padding for axis in axes):
        return edit.call(node.target, x, kernel, stride, padding, False, not any(padding))
    zeros = [zeros for axis in reversed(axes) for zeros in (axis.padding, max(0, axis.overhang))]
    x = edit.call(aten.pad.default, x, zeros) if any(zeros) else x
    pooled = edit.call(node.target, x, kernel, stride)
    if divisor is not None:
        return edit.call(aten.mul.Tensor, pooled, math.prod(kernel) / divisor)
    divisors = torch.ones(1)
    for axis in axes:
        divisors = divisors[..., None] * torch.tensor(axis.lengths(padded=counts_padding))
    if bool((divisors == math.prod(kernel)).all()):
        return pooled
    return edit.call(aten.mul.Tensor, pooled, edit.constant(f"{node.name}_factor", math.prod(kernel) / divisors))


def max_of_padded(
    edit: Editor, node: Node, x: Node, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], ceil: bool,
) -> Node | None:  # fmt: skip
    """The largest values of windows that reach over the edges, without minus infinity put around them.

    Where a pooling with padding of its own has other windows, the edges are repeated: that changes no maximum.
    """
    padded = with_defaults(x) if x.target == aten.pad.default else ()
    if not padded or padded[2] != "constant" or not (padded[3] or 0.0) < _LOWEST or any(padding) or ceil:
        return None
    space = node.meta["val"].ndim - 2
    (inner, around), sizes = padded[:2], [*map(int, padded[0].meta["val"].shape[2:])]
    amounts = [(around + [0] * 2 * space)[2 * axis : 2 * axis + 2] for axis in reversed(range(space))]
    kernel, dilation = ([*each] * (space // len(each)) for each in (kernel, dilation))
    stride = [*stride] * (space // len(stride)) if stride else kernel
    before = [amount[0] for amount in amounts]
    if all(0 <= 2 * start <= k for start, k in zip(before, kernel, strict=True)):
        for ceil in (False, True):
            pooled = edit.call(node.target, inner, kernel, stride, before, dilation, ceil)
            if pooled.meta["val"].shape == node.meta["val"].shape:
                return pooled
    if dilation != [1] * space or any(
        not 0 <= each < k for k, two in zip(kernel, amounts, strict=True) for each in two
    ):
        return None
    for axis, (size, amount) in enumerate(zip(sizes, amounts, strict=True), start=2):
        edges = [
            [edit.call(aten.slice.Tensor, inner, axis, start, start + 1)] * number
            for start, number in zip((0, size - 1), amount, strict=True)
        ]
        inner = edit.call(aten.cat.default, [*edges[0], inner, *edges[1]], axis) if any(edges) else inner
    return edit.call(node.target, inner, kernel, stride)


def adaptive_max(edit: Editor, node: Node, x: Node, counts: Sequence[int]) -> Node | None:
    """The largest value in each window from floor(i size / count) to ceil((i + 1) size / count), axis by axis."""
    if any(user.target is operator.getitem and user.args[1] != 0 for user in node.users):
        return None
    flat = node.target == aten.adaptive_max_pool1d.default
    if flat:
        x, counts = edit.call(aten.unsqueeze.default, x, -2), [1, *counts]
    for axis, count in zip((-2, -1), counts, strict=True):
        size = int(x.meta["val"].shape[axis])
        if size % count == 0:
            x = _largest(edit, x, axis, size // count)
            continue
        dim = x.meta["val"].ndim + axis
        windows = [(index * size // count, math.ceil((index + 1) * size / count)) for index in range(count)]
        parts = [edit.call(aten.slice.Tensor, x, dim, start, end) for start, end in windows]
        largest = [_largest(edit, part, axis, part.meta["val"].shape[axis]) for part in parts]
        x = edit.call(aten.cat.default, largest, dim)
    return edit.call(aten.squeeze.dim, x, -2) if flat else x


def _largest(edit: Editor, x: Node, axis: int, window: int) -> Node:
    """The largest of every so many values along height or width."""
    if window == 1:
        return x
    size = [window if axis == -2 else 1, window if axis == -1 else 1]
    return edit.call(aten.max_pool2d.default, x, size, size)
