"""Poolings in terms of those that all engines take and agree on."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from bitsweep.graphs.editing import Editor
from bitsweep.graphs.ops import aten


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
