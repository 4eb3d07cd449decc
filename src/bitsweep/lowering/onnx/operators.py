"""Operations of programs in terms of those ONNX operations that engines have kernels for."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18
from onnxscript import opset21 as op

from bitsweep.graphs.ops import quantized
from bitsweep.results import Array

aten = torch.ops.aten


def translations(*, codes_of_gates: bool) -> dict[Any, Callable[..., Any]]:
    """Operation of a program -> what writes it.

    Args:
        codes_of_gates: whether hard-swish and SiLU are among them.
    """
    gates = {aten.hardswish.default: hard_swish, aten.silu.default: silu}
    return {
        aten.adaptive_avg_pool2d.default: adaptive_average,
        aten.mean.dim: mean,
        aten.linear.default: linear,
        aten.to.dtype: cast,
        quantized.choose_qparams.tensor: choose_qparams,
        quantized.quantize_per_tensor.tensor: quantize_at_run_time,
        quantized.dequantize_per_tensor.tensor: dequantize_at_run_time,
        **(gates if codes_of_gates else {}),
    }


def adaptive_average(images: Any, output_size: list[int]) -> Any:
    """Averages of [N, C, H, W] over a grid of windows that covers it, by the simplest operation that does it."""
    sizes = [int(size) for size in images.shape[2:]]
    if output_size == [1, 1]:
        return op.GlobalAveragePool(images)
    if output_size == sizes:
        return op.Identity(images)
    if not any(size % count for size, count in zip(sizes, output_size, strict=True)):
        window = [size // count for size, count in zip(sizes, output_size, strict=True)]
        return op.AveragePool(images, kernel_shape=window, strides=window)
    if not any(count % size for size, count in zip(sizes, output_size, strict=True)):
        scales = [count / size for size, count in zip(sizes, output_size, strict=True)]
        return op.Resize(
            images, None, _constant(np.array([1, 1, *scales], np.float32)),
            mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor",
        )  # fmt: skip
    rows, columns = map(averaging_matrix, sizes, output_size)
    return op.MatMul(op.MatMul(_constant(rows), images), _constant(columns.T))


def averaging_matrix(size: int, count: int) -> Array:
    """Matrix, float32 [count, size], of averages from floor(i size / count) to ceil((i + 1) size / count)."""
    matrix = np.zeros((count, size), np.float32)
    for window in range(count):
        start, end = window * size // count, math.ceil((window + 1) * size / count)
        matrix[window, start:end] = 1 / (end - start)
    return matrix


def mean(values: Any, dim: list[int], keepdim: bool = False, dtype: int | None = None) -> Any:
    """Mean over some dimensions; that over height and width is a pooling."""
    if dtype is not None:
        values = op.Cast(values, to=dtype)
    rank = len(values.shape)
    dims = sorted(axis % rank for axis in dim)
    if (rank, dims) != (4, [2, 3]):
        return op.ReduceMean(values, _constant(np.array(dims)), keepdims=int(keepdim))
    pooled = op.GlobalAveragePool(values)
    return pooled if keepdim else op.Flatten(pooled)


def cast(values: Any, dtype: int, non_blocking: bool = False, copy: bool = False, memory_format: str = "") -> Any:
    """Values in another type, without what later opsets say of 8-bit floats."""
    return opset18.Cast(values, to=dtype)


def linear(values: Any, weight: Any, bias: Any = None) -> Any:
    """A linear layer; where its input is quantized at run time, one that multiplies codes.

    With codes q of scale s and zero point z, and weights as codes w of scale s_w and zero point z_w, it computes
    s s_w ((q - z) (w - z_w)^T) + b.
    """
    codes, scale, zero_point = _quantized_at_run_time(values)
    if codes is None:
        if len(values.shape) == 2:
            return op.Gemm(values, weight, *([] if bias is None else [bias]), transB=1)
        product = op.MatMul(values, op.Transpose(weight, perm=[1, 0]))
    else:
        weight_codes, weight_scale, *middle = weight.producer().inputs
        sums = op.MatMulInteger(codes, op.Transpose(weight_codes, perm=[1, 0]), zero_point, *middle)
        product = op.Mul(op.Cast(sums, to=ir.DataType.FLOAT), op.Mul(scale, weight_scale))
    return product if bias is None else op.Add(product, bias)


def hard_swish(values: Any) -> Any:
    """Hard-swish, x min(1, max(0, x / 6 + 1/2)); of 8-bit codes as a product of codes.

    The gate is an addition on codes: those of x, whose scale is a sixth there, and 1/2. It is clamped where codes end.
    """
    if (given := _coded(values)) is None:
        return op.HardSwish(values)
    codes, scale, zero_point = given
    one, zero = np.ones_like(zero_point), np.zeros_like(zero_point)
    sixth = op.DequantizeLinear(codes, _constant(scale / np.float32(6)), _constant(zero_point))
    gate = op.Add(sixth, op.DequantizeLinear(_constant(one), _constant(np.float32(0.5)), _constant(zero)))
    return op.Mul(values, _gate_as_codes(gate, lambda x: min(1.0, max(0.0, x / 6 + 0.5)), scale, zero_point))


def silu(values: Any) -> Any:
    """SiLU, x / (1 + exp(-x)); of 8-bit codes as a product of codes."""
    gate = op.Sigmoid(values)
    if (given := _coded(values)) is not None:
        gate = _gate_as_codes(gate, lambda x: 1 / (1 + math.exp(-x)), *given[1:])
    return op.Mul(values, gate)


def _coded(values: Any) -> tuple[Any, Array, Array] | None:
    """Codes, scale and zero point that a value is dequantized from, if they are 8-bit codes on one known grid."""
    dequantize = values.producer()
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    codes, *grid = dequantize.inputs
    scale, zero_point = map(ir.convenience.get_const_tensor, grid)
    if scale is None or zero_point is None or zero_point.dtype not in {ir.DataType.UINT8, ir.DataType.INT8}:
        return None
    return codes, scale.numpy(), zero_point.numpy()


def _gate_as_codes(gate: Any, function: Callable[[float], float], scale: Array, zero_point: Array) -> Any:
    """A gate through codes of its own, from 0 to the value of a rising function at the largest value that is gated."""
    ends = np.iinfo(zero_point.dtype)
    largest = function(float(scale) * (ends.max - int(zero_point)))
    unit = _constant(np.float32(largest / (ends.max - ends.min)))
    zero = _constant(np.array(ends.min, zero_point.dtype))
    return op.DequantizeLinear(op.QuantizeLinear(gate, unit, zero), unit, zero)


def choose_qparams(values: Any, *limits: Any) -> Any:
    """Scale and zero point of u8 codes that hold all values of a batch."""
    _, scale, zero_point = op.DynamicQuantizeLinear(values)
    return scale, zero_point


def quantize_at_run_time(values: Any, scale: Any, zero_point: Any, *limits: Any) -> Any:
    """Codes on the scale that ``choose_qparams`` chose, by the same operation."""
    return scale.producer().outputs[0]


def dequantize_at_run_time(codes: Any, scale: Any, zero_point: Any, *limits: Any) -> Any:
    """Values of such codes, for operations that do not take the codes themselves."""
    return op.DequantizeLinear(codes, scale, zero_point)


def _quantized_at_run_time(values: Any) -> tuple[Any, ...]:
    """Codes, scale and zero point that a value is dequantized from, if they are made while the network runs."""
    dequantize = values.producer()
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None, None, None
    source = dequantize.inputs[0].producer()
    return dequantize.inputs if source is not None and source.op_type == "DynamicQuantizeLinear" else (None,) * 3


def _constant(values: Array | np.float32) -> Any:
    return op.Constant(value=ir.serde.serialize_tensor(ir.tensor(np.asarray(values, order="C"))))
