"""Programs as ONNX files, in the form that integer engines recognise: explicit QuantizeLinear and DequantizeLinear.

The file holds codes as codes and half-precision parameters as such. Biases of layers that read codes become 32-bit
codes, because integer kernels add them to their sums of products.
"""

import math
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

#: The first opset with 16-bit codes.
OPSET = 21
INPUT, OUTPUT = "images", "logits"
#: Largest code of a bias; leaves room in 32 bits for the sum of products that it is added to.
LARGEST_BIAS_CODE = 2**30

aten = torch.ops.aten


def export_onnx(program: ExportedProgram, path: Path) -> None:
    """Write a program to one ONNX file with a dynamic batch; the same program gives the same bytes.

    The graph maps ``images``, float32 [batch, 3, H, W], to ``logits``, float32 [batch, K].

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
    for node in list(model.graph):
        if node.op_type in ("Conv", "Gemm"):
            _quantize_bias_of(node, model.graph)
    _strip(model)
    ir.save(model, path)


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


def _constant(values: Array) -> Any:
    return op.Constant(value=ir.serde.serialize_tensor(ir.tensor(np.ascontiguousarray(values))))


def _widens_half(node: ir.Node) -> bool:
    """Whether folding a node would store half-precision parameters in twice their size."""
    source = node.inputs[0] if node.op_type == "Cast" else None
    return source is not None and source.dtype in {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


# --------------------------------------------------------------------------- biases as codes


def bias_as_codes(
    bias: Array, *, x_scale: float, codes: Array, scale: Array, zero_point: Array
) -> tuple[Array, Array, Array]:
    """Codes of a bias in units of the products it is added to: round(bias / (x_scale scale)).

    Where weights are so small beside their bias that this exceeds 2^30, their scale is enlarged until it does not.

    Args:
        bias: float32 [C].
        x_scale: of what the layer reads.
        codes: of the weights, integers [C, ...].
        scale, zero_point: of the weights, float32 and integers, [C] or [].

    Returns:
        int32 codes [C] of the bias; codes and scale of the weights.
    """
    least = np.abs(bias.astype(np.float64)) / (x_scale * LARGEST_BIAS_CODE)
    enlarged = np.maximum(scale, least if scale.ndim else least.max()).astype(np.float32)
    along = (-1, *[1] * (codes.ndim - 1))
    shrink, middle = (scale / enlarged).reshape(along), zero_point.astype(np.int32).reshape(along)
    bias_codes = np.rint(bias / (np.float64(x_scale) * enlarged)).astype(np.int32)
    return bias_codes, (np.rint((codes - middle) * shrink) + middle).astype(codes.dtype), enlarged


def _quantize_bias_of(layer: ir.Node, graph: ir.Graph) -> None:
    """Let a layer that reads codes, and weights as codes, read its bias as codes too."""
    if len(layer.inputs) < 3:
        return
    (_, x_scale, _), (codes, scale, zero_point) = map(_dequantized, layer.inputs[:2])
    bias = layer.inputs[2]
    if bias is None or bias.const_value is None or x_scale is None or codes is None:
        return
    assert scale is not None and zero_point is not None
    bias_codes, *adjusted = bias_as_codes(
        bias.const_value.numpy(), x_scale=x_scale.item(), codes=codes, scale=scale, zero_point=zero_point
    )
    if not np.array_equal(adjusted[1], scale):
        layer.replace_input_with(
            1, _dequantize(f"{layer.name}_weight", *adjusted, zero_point, before=layer, graph=graph)
        )
    bias_scale = np.float32(x_scale.item()) * adjusted[1]
    layer.replace_input_with(2, _dequantize(f"{layer.name}_bias", bias_codes, bias_scale, before=layer, graph=graph))


def _dequantized(value: ir.Value | None) -> tuple[Array | None, ...]:
    """Codes, scale and zero point that a value is dequantized from, as far as they are constants."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None, None, None
    constants = (None if source is None else source.const_value for source in node.inputs)
    return tuple(None if constant is None else constant.numpy() for constant in constants)


def _dequantize(name: str, *parameters: Array, before: ir.Node, graph: ir.Graph) -> ir.Value:
    """A value that is dequantized from new constants: codes, scale and perhaps zero point."""
    inputs = []
    for part, values in zip(("codes", "scale", "zero_point"), parameters, strict=False):
        inputs.append(ir.val(f"{name}_{part}", const_value=ir.tensor(values, name=f"{name}_{part}")))
        graph.register_initializer(inputs[-1])
    node = ir.node("DequantizeLinear", inputs, {"axis": 0}, name=f"{name}_dequantize")
    node.outputs[0].name = name
    graph.insert_before(before, node)
    return node.outputs[0]
