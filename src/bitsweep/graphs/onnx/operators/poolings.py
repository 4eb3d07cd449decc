"""Poolings, reductions, and changes of resolution."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bitsweep.graphs.onnx.operators.layers import pad, window_pads
from bitsweep.graphs.onnx.reading import OnnxNode
from bitsweep.graphs.onnx.values import Operator, Value, as_sizes, axes_of, require
from bitsweep.results import Array

_MAXIMA: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEANS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_GLOBAL_MEANS: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d,
}  # fmt: skip


def max_pool(node: OnnxNode, x: Tensor) -> Tensor:
    """What lies beyond the image is less than any value; codes are pooled as they are."""
    if not x.is_floating_point():
        return max_pool(node, x.float()).to(x.dtype)
    kernel, strides, dilations, before, after = _window(node, x)
    ceil = bool(node.get("ceil_mode", 0))
    if before != after or any(2 * amount > size for amount, size in zip(before, kernel, strict=True)):
        x, before = pad(x, before, after, -math.inf), [0] * len(kernel)
    return _MAXIMA[len(kernel)](x, kernel, strides, before, dilations, ceil)


def average_pool(node: OnnxNode, x: Tensor) -> Tensor:
    """Of what lies within the image, or of the zeros around it, too."""
    kernel, strides, dilations, before, after = _window(node, x)
    require(node, set(dilations) <= {1}, f"dilations={dilations}")
    ceil, padded = bool(node.get("ceil_mode", 0)), bool(node.get("count_include_pad", 0))
    pool, spatial = _MEANS[len(kernel)], len(kernel)
    if before == after and all(2 * amount <= size for amount, size in zip(before, kernel, strict=True)):
        return pool(x, kernel, strides, before, ceil, padded)
    require(node, not ceil, "ceil_mode=1 with pads that differ from side to side")
    means = pool(pad(x, before, after), kernel, strides, [0] * spatial)
    if padded:
        return means
    inside = pad(torch.ones_like(x[:1, :1]), before, after)
    return means / pool(inside, kernel, strides, [0] * spatial)


def global_mean(node: OnnxNode, x: Tensor) -> Tensor:
    """Of all positions."""
    return _GLOBAL_MEANS[x.ndim - 2](x, 1)


def reduction(function: Callable[..., Any], of_sizes: Callable[[Any], Any] | None = None) -> Operator:
    """Over some axes, or all of them."""

    def call(node: OnnxNode, x: Value, given: Value | None = None) -> Value:
        axes, keep = axes_of(node, given), bool(node.get("keepdims", 1))
        if not isinstance(x, Tensor):
            assert of_sizes is not None
            return np.asarray(of_sizes(list(x.flat)), dtype=object).reshape([1] * x.ndim if keep else [])
        if not axes:
            if node.get("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.ndim))
        result = function(x, axes, keep)
        assert isinstance(result, Tensor)
        return result

    return Operator(call)


def _along_each(function: Callable[..., Any]) -> Callable[[Tensor, list[int], bool], Tensor]:
    """A reduction that takes one axis at a time."""

    def call(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
            x = function(x, dim=axis, keepdim=keep)
        return x

    return call


def arg_extreme(which: Callable[..., Tensor]) -> Operator:
    """The first of the largest, or of the smallest."""

    def call(node: OnnxNode, x: Tensor) -> Tensor:
        require(node, not node.get("select_last_index", 0), "select_last_index=1")
        return which(x, dim=node.get("axis", 0), keepdim=bool(node.get("keepdims", 1)))

    return Operator(call)


def resize(
    node: OnnxNode, x: Tensor, region: Array | None = None, scales: Array | None = None, sizes: Value | None = None
) -> Tensor:
    """As PyTorch resizes."""
    if scales is None and node.op == "Upsample":
        scales = region if region is not None else np.asarray(node.get("scales"))
    mode, where = node.get("mode", "nearest"), node.get("coordinate_transformation_mode", "half_pixel")
    if node.op == "Upsample":
        where = "asymmetric"
    require(node, node.get("keep_aspect_ratio_policy", "stretch") == "stretch", "keeps the aspect ratio")
    old, wanted = list(x.shape[2:]), _sizes_wanted(node, x, scales, sizes)
    if mode == "nearest":
        require(node, _rounds_down(node, where, old, wanted), f"mode=nearest with {where}")
        return F.interpolate(x, wanted, mode="nearest")
    names = {1: "linear", 2: {"linear": "bilinear", "cubic": "bicubic"}.get(mode, ""), 3: "trilinear"}
    require(node, where in ("half_pixel", "pytorch_half_pixel", "align_corners"), f"mode={mode} with {where}")
    require(node, where != "pytorch_half_pixel" or 1 not in wanted, f"one pixel with {where}")
    require(node, mode != "cubic" or node.get("cubic_coeff_a", -0.75) == -0.75, "another cubic_coeff_a than -0.75")
    require(node, not node.get("exclude_outside", 0), "exclude_outside=1")
    smaller = any(new < size for new, size in zip(wanted, old, strict=True))
    require(node, not (node.get("antialias", 0) and smaller), "antialias=1 to fewer pixels")
    return F.interpolate(x, wanted, mode=names[x.ndim - 2], align_corners=where == "align_corners")


def _sizes_wanted(node: OnnxNode, x: Tensor, scales: Array | None, sizes: Value | None) -> list[int]:
    """The new sizes of the positions; PyTorch goes from old to new ones as scales do that give whole sizes."""
    axes = [axis % x.ndim for axis in node.get("axes", range(x.ndim))]
    require(node, set(axes) >= {*range(2, x.ndim)}, f"axes={axes}")
    if sizes is not None:
        new = dict(zip(axes, map(int, as_sizes(sizes)), strict=True))
    else:
        assert scales is not None
        exact = {axis: x.shape[axis] * float(scale) for axis, scale in zip(axes, scales, strict=True)}
        new = {axis: math.floor(size) for axis, size in exact.items()}
        whole = all(abs(exact[axis] - new[axis]) < 1e-3 for axis in range(2, x.ndim))
        floors = node.get("mode", "nearest") == "nearest" and node.op != "Upsample"
        require(node, whole or floors, f"scales={[float(scale) for scale in scales]} for {list(x.shape[2:])}")
    return [new[axis] for axis in range(2, x.ndim)]


def _rounds_down(node: OnnxNode, where: str, old: list[int], wanted: list[int]) -> bool:
    """Whether the nearest pixel is the one that PyTorch takes: the largest that does not lie beyond."""
    rounding = "floor" if node.op == "Upsample" else node.get("nearest_mode", "round_prefer_floor")
    if where == "asymmetric" and rounding == "floor":
        return True
    times = [new // size if new % size == 0 else 0 for new, size in zip(wanted, old, strict=True)]
    if where == "asymmetric":
        return rounding == "round_prefer_floor" and all(1 <= each <= 2 for each in times)
    return where.endswith("half_pixel") and rounding.startswith("round") and all(each >= 1 for each in times)


def _window(node: OnnxNode, x: Tensor) -> tuple[Sequence[int], Sequence[int], Sequence[int], list[int], list[int]]:
    """Kernel, strides, dilations, and pads at the starts and ends."""
    kernel = node.get("kernel_shape")
    ones = [1] * len(kernel)
    strides, dilations = node.get("strides", ones), node.get("dilations", ones)
    return kernel, strides, dilations, *window_pads(node, x, kernel, strides, dilations)


OPERATORS: dict[str, Operator] = {
    "MaxPool": Operator(max_pool),
    "AveragePool": Operator(average_pool),
    "GlobalAveragePool": Operator(global_mean),
    "GlobalMaxPool": Operator(lambda node, x: x.amax(tuple(range(2, x.ndim)), keepdim=True)),
    "ReduceMean": reduction(torch.mean),
    "ReduceSum": reduction(torch.sum, sum),
    "ReduceMax": reduction(torch.amax, max),
    "ReduceMin": reduction(torch.amin, min),
    "ReduceProd": reduction(_along_each(torch.prod), math.prod),
    "ReduceL1": reduction(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": reduction(lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep)),
    "ReduceSumSquare": reduction(lambda x, axes, keep: x.square().sum(axes, keep)),
    "ReduceLogSum": reduction(lambda x, axes, keep: x.sum(axes, keep).log()),
    "ReduceLogSumExp": reduction(torch.logsumexp),
    "ArgMax": arg_extreme(torch.argmax),
    "ArgMin": arg_extreme(torch.argmin),
    "Resize": Operator(resize, fixed=(1, 2)),
    "Upsample": Operator(resize, fixed=(1,)),
}
