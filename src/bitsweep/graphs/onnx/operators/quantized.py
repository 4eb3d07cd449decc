"""Quantization and dequantization, and products of codes by codes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitsweep.graphs.onnx.operators.layers import convolution
from bitsweep.graphs.onnx.reading import OnnxNode
from bitsweep.graphs.onnx.values import Operator, require
from bitsweep.graphs.ops import quantized
from bitsweep.results import Array

#: Types of codes -> PyTorch's type for them, the smallest and the largest.
CODES: dict[str, tuple[torch.dtype, int, int]] = {
    "int8": (torch.int8, -128, 127),
    "uint8": (torch.uint8, 0, 255),
    "int4": (torch.int8, -8, 7),
    "uint4": (torch.uint8, 0, 15),
    "int2": (torch.int8, -2, 1),
    "uint2": (torch.uint8, 0, 3),
    "int16": (torch.int16, -32768, 32767),
    "uint16": (torch.int32, 0, 65535),
    "int32": (torch.int32, -(2**31), 2**31 - 1),
}
_OUTPUT_TYPES = {2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 21: "uint4", 22: "int4"}


def quantize(node: OnnxNode, x: Tensor, scale: Any, zero_point: Any = None) -> Any:
    """The nearest codes, of the type of the zero point."""
    named = _code_name(zero_point) or _OUTPUT_TYPES.get(node.get("output_dtype", 0), "uint8")
    require(node, named in CODES, f"codes of type {named}")
    kind, lo, hi = CODES[named]
    require(node, not node.get("block_size", 0), "quantizes in blocks")
    if isinstance(scale, Tensor):
        return quantized.quantize_per_channel(x, scale, _zeros(scale, zero_point), _axis(node, x), lo, hi, kind)
    return quantized.quantize_per_tensor(x, _number(scale), int(_number(zero_point)), lo, hi, kind)


def dequantize(node: OnnxNode, x: Tensor, scale: Any, zero_point: Any = None) -> Any:
    """What codes mean."""
    named = node.get("codes") or _code_name(zero_point) or str(x.dtype).removeprefix("torch.")
    require(node, named in CODES, f"codes of type {named}")
    kind, lo, hi = CODES[named]
    require(node, not node.get("block_size", 0), "dequantizes in blocks")
    x = x if x.dtype == kind else x.to(kind)
    if isinstance(scale, Tensor):
        return quantized.dequantize_per_channel(x, scale, _zeros(scale, zero_point), _axis(node, x), lo, hi, kind)
    return quantized.dequantize_per_tensor(x, _number(scale), int(_number(zero_point)), lo, hi, kind)


def _zeros(scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """Zero points of channels, in a type that holds their differences to codes."""
    return torch.zeros_like(scale, dtype=torch.int32) if zero_point is None else zero_point.to(torch.int32)


def _axis(node: OnnxNode, x: Tensor) -> int:
    return int(node.get("axis", 1)) % x.ndim


def quantize_while_running(node: OnnxNode, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes from 0 to 255 for the range of a tensor with 0 in it, kept as floats; their scale; and their zero point."""
    lo, hi = torch.clamp(x.min(), max=0.0), torch.clamp(x.max(), min=0.0)
    scale = (hi - lo) / 255
    zero_point = torch.clamp(torch.round(-lo / scale), 0, 255)
    return torch.clamp(torch.round(x / scale) + zero_point, 0, 255), scale, zero_point


def multiply(node: OnnxNode, x: Tensor, y: Tensor, x_zero: Any = None, y_zero: Any = None) -> Tensor:
    """Sums of products of codes, exact as floats up to 2^24."""
    return torch.matmul(_centred(x, x_zero), _centred(y, y_zero))


def convolve(node: OnnxNode, x: Tensor, weight: Tensor, x_zero: Any = None, weight_zero: Any = None) -> Tensor:
    """The same of a convolution."""
    if weight_zero is not None and np.size(weight_zero) > 1:
        weight_zero = weight_zero.reshape(-1, *[1] * (weight.ndim - 1))
    return convolution(node, _centred(x, x_zero), _centred(weight, weight_zero))


def _centred(codes: Tensor, zero_point: Any) -> Tensor:
    if zero_point is None:
        return codes.float()
    if not isinstance(zero_point, Tensor):
        return codes.float() - float(_number(zero_point))
    return codes.float() - zero_point.float()


def _code_name(zero_point: Any) -> str:
    """The name of the type of codes that a zero point is one of."""
    if zero_point is None:
        return ""
    return str(zero_point.dtype).removeprefix("torch.")


def _number(value: Array | None) -> float:
    return 0.0 if value is None else float(value.reshape(-1)[0])


OPERATORS: dict[str, Operator] = {
    **{f"{domain}QuantizeLinear": Operator(quantize, numbers=(1, 2)) for domain in ("", "com.microsoft.")},
    **{f"{domain}DequantizeLinear": Operator(dequantize, numbers=(1, 2)) for domain in ("", "com.microsoft.")},
    "DynamicQuantizeLinear": Operator(quantize_while_running),
    "MatMulInteger": Operator(multiply, numbers=(2, 3)),
    "ConvInteger": Operator(convolve, numbers=(2, 3)),
}
