"""Weights and biases in ONNX graphs, written as engines take them."""

import ml_dtypes
import numpy as np
import onnx_ir as ir

from bitsweep.lowering.onnx.matching import constant, made_by
from bitsweep.results import Array

#: Types of codes narrower than a byte, by their bits, with the first opset that has them.
NARROW = {2: (ml_dtypes.int2, 25), 4: (ml_dtypes.int4, 21)}
_MOVERS = ("Flatten", "Gather", "MaxPool", "Reshape", "Resize", "Slice", "Squeeze", "Transpose", "Unsqueeze")


def drop_zero_points_of_biases(graph: ir.Graph) -> None:
    """Leave out the zeros that 32-bit codes are dequantized with: they would take as much space as the codes."""
    for node, _ in _biases(graph):
        node.resize_inputs(2)


def dequantize_biases(graph: ir.Graph) -> None:
    """Write biases as the float32 values that their codes mean."""
    for node, codes_O in _biases(graph):
        scale = constant(node.inputs[1])
        assert scale is not None
        values_O = codes_O.astype(np.float32) * scale
        (dequantized,) = node.outputs
        bias = ir.Value(name=f"{dequantized.name}_values", const_value=ir.tensor(values_O))
        graph.register_initializer(bias)
        dequantized.replace_all_uses_with(bias)


def _biases(graph: ir.Graph) -> list[tuple[ir.Node, Array]]:
    """The nodes that dequantize biases, with their codes, int32 [O]."""
    dequantized = ((node, constant(node.inputs[0])) for node in graph if node.op_type == "DequantizeLinear")
    return [(node, codes) for node, codes in dequantized if codes is not None and codes.dtype == np.int32]


def separate_zero_points(graph: ir.Graph) -> None:
    """Give every weight zero points of its own: OpenVINO computes in float what shares them otherwise."""
    for node in graph:
        if node.op_type != "DequantizeLinear" or len(node.inputs) < 3:
            continue
        codes, _, shared = node.inputs
        zeros = constant(shared)
        if shared is None or zeros is None or constant(codes) is None:
            continue
        if len(shared.uses()) > 1 and zeros.ndim:
            own = ir.Value(name=f"{node.name}_zero_points", const_value=ir.tensor(zeros))
            graph.register_initializer(own)
            node.replace_input_with(2, own)


def keep_float_weights(graph: ir.Graph) -> None:
    """Put a clamp that changes nothing before every layer of codes with float weights.

    Between codes, ONNX Runtime would put these on one grid of 8 bits, without asking.
    """
    lowest = ir.Value(name="lowest", const_value=ir.tensor(np.float32(np.finfo(np.float32).min)))
    for layer in [node for node in graph if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]:
        values, weight = layer.inputs[:2]
        is_known = constant(weight) is not None or made_by(weight, "Cast") is not None
        if not (is_known and _may_be_codes(values)):
            continue
        if not lowest.uses():
            graph.register_initializer(lowest)
        clamp = ir.node("Clip", [values, lowest], name=f"{layer.name}_input")
        graph.insert_before(layer, clamp)
        layer.replace_input_with(0, clamp.outputs[0])


def _may_be_codes(values: ir.Value | None) -> bool:
    """Whether values are dequantized codes, or these in another place or shape, before which engines move the pair."""
    node = None if values is None else values.producer()
    while node is not None and node.op_type in _MOVERS:
        moved = node.inputs[0]
        node = None if moved is None else moved.producer()
    return node is not None and node.op_type == "DequantizeLinear"


def narrow_weights(model: ir.Model, fewest_bits: int) -> None:
    """Write 8-bit codes of weights in the narrowest type that holds them all, and cast that back to bytes."""
    for node in [node for node in model.graph if node.op_type == "DequantizeLinear"]:
        codes = node.inputs[0]
        values = constant(codes)
        if codes is None or values is None or values.dtype != np.int8:
            continue
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
