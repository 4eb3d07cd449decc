"""Operations with weights: convolutions, products of matrices and normalisations."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bitsweep.graphs.onnx.reading import OnnxNode
from bitsweep.graphs.onnx.values import Operator, Value, as_tensor, require

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d,
}  # fmt: skip


def window_pads(
    node: OnnxNode, x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[list[int], list[int]]:
    """How far a window that slides over the last axes reaches beyond them, at their starts and at their ends."""
    spatial, auto = len(kernel), node.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID"):
        pads = node.get("pads", [0] * 2 * spatial) if auto == "NOTSET" else [0] * 2 * spatial
        return list(pads[:spatial]), list(pads[spatial:])
    before, after = [], []
    for size, width, stride, dilation in zip(x.shape[-spatial:], kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(size / stride) - 1) * stride + dilation * (width - 1) + 1 - int(size))
        less, more = total // 2, total - total // 2
        before.append(less if auto == "SAME_UPPER" else more)
        after.append(more if auto == "SAME_UPPER" else less)
    return before, after


def pad(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    """Put values around the last axes."""
    amounts = [amount for pair in zip(reversed(before), reversed(after), strict=True) for amount in pair]
    return F.pad(x, amounts, value=value) if any(amounts) else x


def convolution(node: OnnxNode, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """With zeros around, of another number on each side if need be."""
    spatial = weight.ndim - 2
    ones = [1] * spatial
    strides, dilations = node.get("strides", ones), node.get("dilations", ones)
    before, after = window_pads(node, x, weight.shape[2:], strides, dilations)
    if before != after:
        x, before = pad(x, before, after), [0] * spatial
    return _CONVOLUTIONS[spatial](
        x, weight, bias, stride=strides, padding=before, dilation=dilations, groups=node.get("group", 1)
    )


def transposed_convolution(node: OnnxNode, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """With the same amount cut off on both sides."""
    spatial = weight.ndim - 2
    pads, ones = node.get("pads", [0] * 2 * spatial), [1] * spatial
    require(
        node, node.get("auto_pad", "NOTSET") == "NOTSET" and not node.get("output_shape"), "computes its own padding"
    )
    require(node, pads[:spatial] == pads[spatial:], f"pads {pads} differ from side to side")
    return _TRANSPOSED[spatial](
        x, weight, bias, stride=node.get("strides", ones), padding=pads[:spatial],
        output_padding=node.get("output_padding", [0] * spatial), groups=node.get("group", 1),
        dilation=node.get("dilations", ones),
    )  # fmt: skip


def linear(node: OnnxNode, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A product by weights [O, I], which `bitsweep.graphs.onnx.fusing` makes of others."""
    return F.linear(x, weight, bias)


def general_product(node: OnnxNode, x: Tensor, y: Tensor, z: Value | None = None) -> Tensor:
    """alpha x y + beta z."""
    x, y = x.t() if node.get("transA", 0) else x, y.t() if node.get("transB", 0) else y
    result = torch.matmul(x, y)
    if (alpha := node.get("alpha", 1.0)) != 1.0:
        result = result * alpha
    if z is None:
        return result
    beta = node.get("beta", 1.0)
    return result + (as_tensor(z) if beta == 1.0 else as_tensor(z) * beta)


def batch_norm(node: OnnxNode, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """By the statistics of the training."""
    require(
        node, not node.get("training_mode", 0), "normalises by the statistics of a batch; export in evaluation mode"
    )
    return F.batch_norm(x, mean, variance, gamma, beta, training=False, eps=node.get("epsilon", 1e-5))


def layer_norm(node: OnnxNode, x: Tensor, gamma: Tensor, beta: Tensor | None = None) -> Tensor:
    """Over the axes from one on."""
    shape = x.shape[node.get("axis", -1) % x.ndim :]
    beta = None if beta is None else beta.expand(shape)
    return F.layer_norm(x, shape, gamma.expand(shape), beta, node.get("epsilon", 1e-5))


def rms_norm(node: OnnxNode, x: Tensor, gamma: Tensor) -> Tensor:
    """Over the axes from one on, without a mean."""
    shape = x.shape[node.get("axis", -1) % x.ndim :]
    return F.rms_norm(x, shape, gamma.expand(shape), node.get("epsilon", 1e-5))


def instance_norm(node: OnnxNode, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Over the positions of each channel."""
    return F.instance_norm(x, weight=gamma, bias=beta, eps=node.get("epsilon", 1e-5))


def group_norm(node: OnnxNode, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """With a gain for each channel, or for each group."""
    groups, channels = node.get("num_groups"), x.shape[1]
    if gamma.numel() != channels:
        gamma, beta = (each.repeat_interleave(channels // groups) for each in (gamma, beta))
    return F.group_norm(x, groups, gamma, beta, node.get("epsilon", 1e-5))


def local_response_norm(node: OnnxNode, x: Tensor) -> Tensor:
    """Over neighbouring channels."""
    size = node.get("size")
    require(node, size % 2 == 1, f"size={size} is even")
    return F.local_response_norm(x, size, node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0))


def lp_norm(node: OnnxNode, x: Tensor) -> Tensor:
    """To length 1; zeros stay zeros."""
    return F.normalize(x, p=node.get("p", 2), dim=node.get("axis", -1), eps=torch.finfo(torch.float32).tiny)


def skip_layer_norm(node: OnnxNode, x: Tensor, *given: Any) -> Tensor:
    """Of a sum."""
    skip, gamma, beta, bias = (*given, None, None, None)[:4]
    total = x + skip if bias is None else x + skip + bias
    return layer_norm(node, total, gamma, beta)


OPERATORS: dict[str, Operator] = {
    "Conv": Operator(convolution, weighted=True),
    "ConvTranspose": Operator(transposed_convolution, weighted=True),
    "Linear": Operator(linear, weighted=True),
    "Gemm": Operator(general_product, weighted=True),
    "MatMul": Operator(lambda node, x, y: torch.matmul(as_tensor(x), as_tensor(y)), weighted=True),
    "Einsum": Operator(lambda node, *x: torch.einsum(node.get("equation"), *x)),
    "BatchNormalization": Operator(batch_norm, weighted=True),
    "LayerNormalization": Operator(layer_norm, weighted=True),
    "RMSNormalization": Operator(rms_norm, weighted=True),
    "com.microsoft.SkipLayerNormalization": Operator(skip_layer_norm, weighted=True),
    "InstanceNormalization": Operator(instance_norm, weighted=True),
    "GroupNormalization": Operator(group_norm, weighted=True),
    "LRN": Operator(local_response_norm),
    "LpNormalization": Operator(lp_norm),
}
