"""Programs as ONNX files, in the form that integer engines recognise: explicit QuantizeLinear and DequantizeLinear.

The file holds codes as codes and half-precision parameters as such.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import opset21 as op
from onnxscript import optimizer
from torch.export import ExportedProgram

from bitsweep.artifacts import Array
from bitsweep.errors import CompressionError
from bitsweep.quantization.weights import quantized

#: The first opset with 16-bit codes.
OPSET = 21
INPUT, OUTPUT = "images", "logits"

aten = torch.ops.aten


def export_onnx(
    program: ExportedProgram, path: Path, *, codes_of_biases: bool = True, codes_of_gates: bool = False
) -> None:
    """Write a program to one ONNX file with a dynamic batch; the same program gives the same bytes.

    The graph maps ``images``, float32 [batch, 3, H, W], to ``logits``, float32 [batch, K].

    Args:
        codes_of_biases: whether biases that are 32-bit codes stay codes; else the values that these mean are written.
        codes_of_gates: whether hard-swish and SiLU of 8-bit codes are written as products of two tensors of codes, for
            engines without a kernel for these functions.

    Raises:
        CompressionError: ONNX cannot express an operation of the program.
    """
    try:
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            custom_translation_table={
                aten.adaptive_avg_pool2d.default: adaptive_average,
                aten.mean.dim: mean,
                aten.linear.default: linear,
                quantized.choose_qparams.tensor: choose_qparams,
                quantized.quantize_per_tensor.tensor: quantize_at_run_time,
                quantized.dequantize_per_tensor.tensor: dequantize_at_run_time,
                **({aten.hardswish.default: hard_swish, aten.silu.default: silu} if codes_of_gates else {}),
            },
            optimize=False,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise CompressionError(f"ONNX cannot express the program: {reason}") from error
    assert exported is not None
    model = exported.model
    optimizer.optimize_ir(model, should_fold=lambda node: False if _widens_half(node) else None)
    if codes_of_biases:
        _drop_zero_points_of_biases(model)
    else:
        _dequantize_biases(model)
    _separate_zero_points(model.graph)
    _rectify_codes(model.graph)
    _pad_in_convolutions(model.graph)
    _strip(model)
    ir.save(model, path)


def _drop_zero_points_of_biases(model: ir.Model) -> None:
    """Leave out the zeros that 32-bit codes are dequantized with: they would take as much space as the codes."""
    for node, _ in _biases(model):
        node.resize_inputs(2)


def _dequantize_biases(model: ir.Model) -> None:
    """Write biases as the float32 values that their codes mean."""
    for node, codes_O in _biases(model):
        scale = node.inputs[1]
        assert scale is not None and scale.const_value is not None
        values_O = codes_O.astype(np.float32) * scale.const_value.numpy()
        (dequantized,) = node.outputs
        bias = ir.Value(name=f"{dequantized.name}_values", const_value=ir.tensor(values_O))
        model.graph.register_initializer(bias)
        dequantized.replace_all_uses_with(bias)


def _biases(model: ir.Model) -> list[tuple[ir.Node, Array]]:
    """The nodes that dequantize biases, with their codes, int32 [O]."""
    dequantized = (node for node in model.graph if node.op_type == "DequantizeLinear")
    codes = ((node, node.inputs[0].const_value) for node in dequantized if node.inputs[0] is not None)
    return [(node, each.numpy()) for node, each in codes if each is not None and each.dtype == ir.DataType.INT32]


def _separate_zero_points(graph: ir.Graph) -> None:
    """Give every weight zero points of its own: OpenVINO computes in float what shares them otherwise."""
    for node in graph:
        if node.op_type != "DequantizeLinear" or len(node.inputs) < 3:
            continue
        codes, _, zeros = node.inputs
        if codes is None or codes.const_value is None or zeros is None or zeros.const_value is None:
            continue
        if len(zeros.uses()) > 1 and zeros.const_value.numpy().ndim:
            own = ir.Value(name=f"{node.name}_zero_points", const_value=ir.tensor(zeros.const_value.numpy()))
            graph.register_initializer(own)
            node.replace_input_with(2, own)


def _rectify_codes(graph: ir.Graph) -> None:
    """Let every ReLU before signed codes work on the codes, in which 0 is 0: max(0, Q(x)) = Q(max(0, x)).

    So does a clamp from 0 to what no code exceeds. Engines fuse a layer with what quantizes its output. A ReLU in
    between they drop only where clamping codes at 0 does the same, which is so for unsigned codes; else the layer would
    be computed in float.
    """
    for quantize in [node for node in graph if node.op_type == "QuantizeLinear"]:
        values, scale, zero_point = quantize.inputs
        relu = _made_by(values, "Relu") or _made_by(values, "Clip")
        if relu is None or zero_point is None or zero_point.const_value is None:
            continue
        if relu.op_type == "Clip" and not _clamps_codes_at_zero_only(relu, scale):
            continue
        if zero_point.const_value.dtype != ir.DataType.INT8 or zero_point.const_value.numpy().any():
            continue
        quantize.replace_input_with(0, relu.inputs[0])
        (codes,) = quantize.outputs
        rectified = ir.node("Relu", [codes], name=f"{relu.name}_of_codes")
        rectified.outputs[0].name = f"{codes.name}_rectified"
        graph.insert_after(quantize, rectified)
        for reader, index in [use for use in codes.uses() if use.node is not rectified]:
            reader.replace_input_with(index, rectified.outputs[0])


def _clamps_codes_at_zero_only(clip: ir.Node, scale: ir.Value | None) -> bool:
    """Whether a clamp starts at 0, and ends where signed codes of a byte of that scale end, or beyond."""
    lo, hi, unit = (None if value is None else value.const_value for value in (*clip.inputs[1:3], scale))
    if lo is None or hi is None or unit is None:
        return False
    largest = np.iinfo(np.int8).max * unit.numpy()
    return not lo.numpy().any() and bool(hi.numpy() >= largest * (1 - 1e-6))


def _pad_in_convolutions(graph: ir.Graph) -> None:
    """Let every convolution pad by itself what zeros are put around just before it: engines pad codes as floats.

    A pair in between changes nothing where the padded values come from the same grid, since 0 has a code on every grid.
    """
    for convolution in [node for node in graph if node.op_type == "Conv"]:
        values = convolution.inputs[0]
        pad = _made_by(values, "Pad") or _made_by(values, "DequantizeLinear", "QuantizeLinear", "Pad")
        if pad is None or convolution.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            continue
        padded, zeros = pad.inputs[0], _zeros_around(pad)
        between = _made_by(values, "DequantizeLinear")
        if zeros is None or not (between is None or _same_grid(between, _made_by(padded, "DequantizeLinear"))):
            continue
        own = convolution.attributes.get_ints("pads", [0] * len(zeros))
        convolution.attributes["pads"] = ir.AttrInt64s("pads", [sum(each) for each in zip(own, zeros, strict=True)])
        convolution.replace_input_with(0, padded)


def _zeros_around(pad: ir.Node) -> list[int] | None:
    """How many zeros a padding puts before, then after, each dimension of space; None if it does anything else."""
    _, sizes, fill, axes = (*pad.inputs, None, None)[:4]
    if pad.attributes.get_string("mode", "constant") != "constant" or axes is not None:
        return None
    if fill is not None and (fill.const_value is None or fill.const_value.numpy().any()):
        return None
    if sizes is None or sizes.const_value is None:
        return None
    before, after = np.split(sizes.const_value.numpy(), 2)
    if min(*before, *after) < 0 or any((*before[:2], *after[:2])):
        return None
    return [int(size) for size in (*before[2:], *after[2:])]


def _made_by(value: ir.Value | None, *operations: str) -> ir.Node | None:
    """The node that a value comes from through the given operations, the nearest first."""
    node = None
    for operation in operations:
        node = None if value is None else value.producer()
        if node is None or node.op_type != operation:
            return None
        value = node.inputs[0]
    return node


def _same_grid(one: ir.Node, other: ir.Node | None) -> bool:
    """Whether two nodes dequantize codes of the same type with the same scale and zero point."""
    if other is None or len(one.inputs) != len(other.inputs):
        return False
    pairs = [(a.const_value, b.const_value) for a, b in zip(one.inputs[1:], other.inputs[1:], strict=True) if a and b]
    return all(a and b and a.dtype == b.dtype and (a.numpy() == b.numpy()).all() for a, b in pairs)


def _strip(model: ir.Model) -> None:
    """Leave only what an engine needs: no names of source files, no shapes that follow from others."""
    passes.RemoveUnusedNodesPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)
    for node in model.graph:
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.type = value.shape = None
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.shape is not None
        value.shape = ir.Shape(["batch", *value.shape[1:]])
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


# --------------------------------------------------------------------------- operations that engines have kernels for


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


def linear(values: Any, weight: Any, bias: Any = None) -> Any:
    """A linear layer; where its input is quantized at run time, one that multiplies codes.

    With codes q of scale s and zero point z, and weights as codes w of scale s_w and zero point z_w, it yields
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
    """A gate through codes of its own, from 0 to what a rising function yields for the largest value that is gated."""
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
    """Values of such codes, for operations that do not read the codes themselves."""
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


def _widens_half(node: ir.Node) -> bool:
    """Whether folding a node would store half-precision parameters in twice their size."""
    source = node.inputs[0] if node.op_type == "Cast" else None
    return source is not None and source.dtype in {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
