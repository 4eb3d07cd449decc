"""Programs as ONNX files, in the form that integer engines recognise: explicit QuantizeLinear and DequantizeLinear.

The file holds codes as codes, weights in as few bits as ONNX has a type for, and half-precision parameters as such.
"""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import optimizer
from torch.export import ExportedProgram

from bitsweep.artifacts import Array
from bitsweep.errors import CompressionError
from bitsweep.lowering.onnx_operations import translations

#: The first opset with 4-bit codes and 16-bit ones.
OPSET = 21
#: Types of codes narrower than a byte, by their bits, with the first opset that has them.
NARROW = {2: (ml_dtypes.int2, 25), 4: (ml_dtypes.int4, OPSET)}
INPUT, OUTPUT = "images", "logits"


def export_onnx(
    program: ExportedProgram,
    path: Path,
    *,
    codes_of_biases: bool = True,
    codes_of_gates: bool = False,
    bits_of_weights: int = 8,
) -> None:
    """Write a program to one ONNX file with a dynamic batch; the same program gives the same bytes.

    The graph maps ``images``, float32 [batch, 3, H, W], to ``logits``, float32 [batch, K].

    Args:
        codes_of_biases: whether biases that are 32-bit codes stay codes; else the values that these mean are written.
        codes_of_gates: whether hard-swish and SiLU of 8-bit codes are written as products of two tensors of codes, for
            engines without a kernel for these functions.
        bits_of_weights: of the narrowest type that codes of weights may be written in, 2, 4 or 8. Narrow ones are
            followed by a cast to bytes, for engines that do this once, when they load the file.

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
            custom_translation_table=translations(codes_of_gates=codes_of_gates),
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
    _narrow_weights(model, bits_of_weights)
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


def _narrow_weights(model: ir.Model, fewest_bits: int) -> None:
    """Write 8-bit codes of weights in the narrowest type that holds them all, and cast that back to bytes."""
    for node in [node for node in model.graph if node.op_type == "DequantizeLinear"]:
        codes = node.inputs[0]
        if codes is None or codes.const_value is None or codes.const_value.dtype != ir.DataType.INT8:
            continue
        values = codes.const_value.numpy()
        bits = next((bits for bits in sorted(NARROW) if bits >= fewest_bits and _fits(values, bits)), None)
        if bits is None:
            continue
        dtype, opset = NARROW[bits]
        narrow = ir.Value(name=f"{codes.name}_{bits}_bits", const_value=ir.tensor(values.astype(dtype)))
        model.graph.register_initializer(narrow)
        cast = ir.node("Cast", [narrow], {"to": ir.DataType.INT8}, name=f"{narrow.name}_cast")
        cast.outputs[0].name = f"{codes.name}_bytes"
        model.graph.insert_before(node, cast)
        for reader, index in list(codes.uses()):
            reader.replace_input_with(index, cast.outputs[0])
        model.opset_imports[""] = max(opset, model.opset_imports[""])


def _fits(codes: Array, bits: int) -> bool:
    return bool(-(2 ** (bits - 1)) <= codes.min() and codes.max() < 2 ** (bits - 1))


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


def _widens_half(node: ir.Node) -> bool:
    """Whether folding a node would store half-precision parameters in twice their size."""
    source = node.inputs[0] if node.op_type == "Cast" else None
    return source is not None and source.dtype in {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
