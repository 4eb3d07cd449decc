"""Graphs of ONNX rewritten, without a change of what they compute, into those that engines have fast kernels for."""

import math

import numpy as np
import onnx_ir as ir

from bitsweep.lowering.onnx.matching import constant, made_by, only_reader, same_grid

#: Input channels of a group that ONNX Runtime's kernel for codes handles well.
WIDTH = 32


def rectify_codes(graph: ir.Graph) -> None:
    """Let every ReLU before signed codes work on the codes, in which 0 is 0: max(0, Q(x)) = Q(max(0, x)).

    So does a clamp from 0 to what no code exceeds. Engines fuse a layer with what quantizes its output. A ReLU in
    between they drop only where clamping codes at 0 does the same, which is so for unsigned codes; else the layer would
    be computed in float.
    """
    for quantize in [node for node in graph if node.op_type == "QuantizeLinear"]:
        values, scale, _ = quantize.inputs
        relu, zero = made_by(values, "Relu") or made_by(values, "Clip"), constant(quantize.inputs[2])
        if relu is None or zero is None or zero.dtype != np.int8 or zero.any():
            continue
        if relu.op_type == "Clip" and not _clamps_codes_at_zero_only(relu, scale):
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
    lo, hi, unit = map(constant, (*clip.inputs[1:3], scale))
    if lo is None or hi is None or unit is None:
        return False
    return not lo.any() and bool(hi >= np.iinfo(np.int8).max * unit * (1 - 1e-6))


def convolve_averages(graph: ir.Graph) -> None:
    """Write averages of windows between 8-bit codes as depthwise convolutions whose weights all are 1 over their size.

    ONNX Runtime's kernel for such averages takes up to 15 times as long.
    """
    for pool in [node for node in graph if node.op_type == "AveragePool"]:
        ends = made_by(pool.inputs[0], "DequantizeLinear"), only_reader(pool.outputs[0], "QuantizeLinear")
        if not all(map(_is_of_bytes, ends)):
            continue
        (values,), attributes = pool.inputs, dict(pool.attributes)
        assert values is not None and values.shape is not None
        channels = values.shape[1]
        assert isinstance(channels, int)
        counts_zeros = attributes.pop("count_include_pad", None)
        padded = any(pool.attributes.get_ints("pads", [])) and (counts_zeros is None or not counts_zeros.as_int())
        ceils, window = attributes.pop("ceil_mode", None), pool.attributes.get_ints("kernel_shape", [])
        if padded or (ceils is not None and ceils.as_int()) or len(window) != 2:
            continue
        name, tape = pool.outputs[0].name, ir.tape.Tape(graph)
        ones, share, zero = (
            tape.initializer(ir.tensor(each), f"{name}_{what}")
            for what, each in {
                "ones": np.ones((channels, 1, *window), np.int8),
                "share": np.array(1 / math.prod(window), np.float32),
                "zero": np.array(0, np.int8),
            }.items()
        )
        weights = tape.op("DequantizeLinear", [ones, share, zero])
        result = tape.op("Conv", [values, weights], {**attributes, "group": channels}, name=pool.name)
        ir.convenience.replace_nodes_and_values(graph, pool, [pool], tape.nodes, pool.outputs, [result])


def widen_groups(graph: ir.Graph) -> None:
    """Write convolutions between codes with narrow groups as some with fewer ones, whose further weights are 0.

    ONNX Runtime multiplies one small matrix for each group, which takes longer than the products with 0.
    """
    for convolution in [node for node in graph if node.op_type == "Conv"]:
        values, weight, *bias = convolution.inputs
        dequantize, groups = made_by(weight, "DequantizeLinear"), convolution.attributes.get_int("group", 1)
        if dequantize is None or not (_is_of_bytes(dequantize) and _is_of_bytes(made_by(values, "DequantizeLinear"))):
            continue
        codes, zero_points = map(constant, dequantize.inputs[::2])
        if codes is None or zero_points is None:
            continue
        outputs, inputs, *window = codes.shape
        joined = max((each for each in range(1, 1 + WIDTH // inputs) if not groups % each), default=1)
        is_depthwise = inputs == 1 and outputs == groups
        if joined == 1 or is_depthwise or not _is_quantized(convolution.outputs[0]):
            continue
        zero_O = np.broadcast_to(zero_points, outputs).reshape(-1, *[1] * (codes.ndim - 1))
        wide = np.broadcast_to(zero_O, (outputs, joined * inputs, *window)).copy()
        for output in range(outputs):
            first = inputs * (output * groups // outputs % joined)
            wide[output, first : first + inputs] = codes[output]
        tape = ir.tape.Tape(graph)
        stored = tape.initializer(ir.tensor(wide), f"{convolution.outputs[0].name}_weights")
        weights = tape.op("DequantizeLinear", [stored, *dequantize.inputs[1:]], dict(dequantize.attributes))
        attributes = {**convolution.attributes, "group": groups // joined}
        result = tape.op("Conv", [values, weights, *bias], attributes, name=convolution.name)
        ir.convenience.replace_nodes_and_values(
            graph, convolution, [convolution], tape.nodes, convolution.outputs, [result]
        )


def _is_of_bytes(node: ir.Node | None) -> bool:
    """Whether a node quantizes to, or dequantizes from, codes of a byte."""
    zero_points = None if node is None or len(node.inputs) < 3 else constant(node.inputs[2])
    return zero_points is not None and zero_points.dtype in (np.int8, np.uint8)


def _is_quantized(values: ir.Value) -> bool:
    """Whether values become codes, rectified or not, so that the layer that yields them computes on codes."""
    for rectifier in ("Relu", "Clip"):
        if (node := only_reader(values, rectifier)) is not None:
            (values,) = node.outputs
    return only_reader(values, "QuantizeLinear") is not None


def pad_in_convolutions(graph: ir.Graph) -> None:
    """Let every convolution pad by itself what zeros are put around just before it: engines pad codes as floats.

    A pair in between changes nothing where the padded values come from the same grid, since 0 has a code on every grid.
    """
    for convolution in [node for node in graph if node.op_type == "Conv"]:
        values = convolution.inputs[0]
        pad = made_by(values, "Pad") or made_by(values, "DequantizeLinear", "QuantizeLinear", "Pad")
        if pad is None or convolution.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            continue
        padded, zeros = pad.inputs[0], _zeros_around(pad)
        between = made_by(values, "DequantizeLinear")
        if zeros is None or not (between is None or same_grid(between, made_by(padded, "DequantizeLinear"))):
            continue
        own = convolution.attributes.get_ints("pads", [0] * len(zeros))
        convolution.attributes["pads"] = ir.AttrInt64s("pads", [sum(each) for each in zip(own, zeros, strict=True)])
        convolution.replace_input_with(0, padded)


def pad_codes(graph: ir.Graph) -> None:
    """Let every padding between two pairs of the same grid work on the codes: a zero is the code of the zero point.

    Engines would pad the values in float; OpenVINO loses track of their scale then.
    """
    for pad in [node for node in graph if node.op_type == "Pad"]:
        (padded,) = pad.outputs
        before, quantize = made_by(pad.inputs[0], "DequantizeLinear"), only_reader(padded, "QuantizeLinear")
        if before is None or quantize is None or not same_grid(quantize, before):
            continue
        codes, _, zero_point = before.inputs
        inputs = [codes, pad.inputs[1], *pad.inputs[2:]]
        if pad.attributes.get_string("mode", "constant") == "constant":
            fill = constant(pad.inputs[2]) if len(pad.inputs) > 2 and pad.inputs[2] is not None else np.zeros(())
            if fill is None or fill.any():
                continue
            inputs = [codes, pad.inputs[1], zero_point, *pad.inputs[3:]]
        tape = ir.tape.Tape(graph)
        result = tape.op("Pad", inputs, dict(pad.attributes), name=pad.name)
        ir.convenience.replace_nodes_and_values(graph, pad, [quantize], tape.nodes, quantize.outputs, [result])


def drop_pairs_after_joins(graph: ir.Graph) -> None:
    """Leave out the pairs that follow joined parts which all come from the same grid: such a pair changes nothing.

    OpenVINO ends with a segmentation fault where one stands before a multiplication, as in a DenseNet.
    """
    found = []
    for join in [node for node in graph if node.op_type == "Concat"]:
        parts = [made_by(part, "DequantizeLinear") for part in join.inputs]
        for quantize, _ in join.outputs[0].uses():
            if quantize.op_type == "QuantizeLinear" and all(same_grid(quantize, part) for part in parts):
                found += [(reader, join.outputs[0]) for reader, _ in quantize.outputs[0].uses()]
    for dequantize, joined in found:
        if dequantize.op_type == "DequantizeLinear":
            dequantize.outputs[0].replace_all_uses_with(joined)


def join_tokens_as_codes(graph: ir.Graph) -> None:
    """Join sequences of tokens, [N, T, C], that come from one grid as codes, and dequantize what is joined.

    OpenVINO takes their axis for that of channels, and refuses the linear layer behind, unless the code of zero is 0.
    """
    for join in [node for node in graph if node.op_type == "Concat"]:
        shape = join.outputs[0].shape
        first, *others = (made_by(part, "DequantizeLinear") for part in join.inputs)
        if shape is None or len(shape) != 3 or first is None or not all(same_grid(first, each) for each in others):
            continue
        tape = ir.tape.Tape(graph)
        parts = [part.producer().inputs[0] for part in join.inputs]  # type: ignore[union-attr]
        codes = tape.op("Concat", parts, dict(join.attributes), name=join.name)
        result = tape.op("DequantizeLinear", [codes, *first.inputs[1:]], dict(first.attributes))
        ir.convenience.replace_nodes_and_values(graph, join, [join], tape.nodes, join.outputs, [result])


def sum_tokens_by_products(graph: ir.Graph) -> None:
    """Write sums and averages over the tokens of [N, T, C] as products with a row of ones, or of 1 / T.

    OpenVINO mixes up the images of a batch where it reduces codes of such tensors.
    """
    for node in [node for node in graph if node.op_type in ("ReduceMean", "ReduceSum")]:
        values, axes = node.inputs[0], constant(node.inputs[1]) if len(node.inputs) > 1 else None
        shape = None if values is None else values.shape
        if axes is None or shape is None or len(shape) != 3 or (axes % 3).tolist() != [1]:
            continue
        if not isinstance(tokens := shape[1], int):
            continue
        tape, name = ir.tape.Tape(graph), node.outputs[0].name
        each = 1 / tokens if node.op_type == "ReduceMean" else 1.0
        row = tape.initializer(ir.tensor(np.full((1, tokens), each, np.float32)), f"{name}_row")
        result = tape.op("MatMul", [row, values], name=node.name)
        if not node.attributes.get_int("keepdims", 1):
            result = tape.op("Squeeze", [result, tape.initializer(ir.tensor(np.array([1])), f"{name}_axis")])
        ir.convenience.replace_nodes_and_values(graph, node, [node], tape.nodes, node.outputs, [result])


def _zeros_around(pad: ir.Node) -> list[int] | None:
    """How many zeros a padding puts before, then after, each dimension of space; None if it does anything else."""
    _, sizes, fill, axes = (*pad.inputs, None, None)[:4]
    if pad.attributes.get_string("mode", "constant") != "constant" or axes is not None:
        return None
    value, counts = np.zeros(()) if fill is None else constant(fill), constant(sizes)
    if value is None or value.any() or counts is None:
        return None
    before, after = np.split(counts, 2)
    if min(*before, *after) < 0 or any((*before[:2], *after[:2])):
        return None
    return [int(size) for size in (*before[2:], *after[2:])]


def dequantize_gates_by_arithmetic(graph: ir.Graph) -> None:
    """Write inputs of hard-swish, SiLU and sigmoid as s (q - z) of their codes: a cast, a subtraction and a product.

    What OpenVINO knows as a dequantization often starts a kernel of its own, which reads codes from memory; arithmetic
    it computes with the function at the end of the layer before.
    """
    for dequantize in [node for node in graph if node.op_type == "DequantizeLinear"]:
        (values,) = dequantize.outputs
        if not values.uses() or not all(_gates(reader, values) for reader, _ in values.uses()):
            continue
        scale, zero_point = (constant(grid) for grid in dequantize.inputs[1:])
        if scale is None or zero_point is None or scale.ndim:
            continue
        tape = ir.tape.Tape(graph)
        codes = tape.op("Cast", dequantize.inputs[:1], {"to": ir.DataType.FLOAT})
        zero = tape.initializer(ir.tensor(zero_point.astype(np.float32)), f"{values.name}_zero")
        unit = tape.initializer(ir.tensor(scale), f"{values.name}_unit")
        result = tape.op("Mul", [tape.op("Sub", [codes, zero]), unit])
        ir.convenience.replace_nodes_and_values(graph, dequantize, [dequantize], tape.nodes, [values], [result])


def _gates(reader: ir.Node, values: ir.Value) -> bool:
    """Whether a node is hard-swish or the sigmoid of some values, or the product of both that SiLU is."""
    if reader.op_type != "Mul":
        return reader.op_type in {"HardSwish", "Sigmoid"}
    sigmoids = [made_by(factor, "Sigmoid") for factor in reader.inputs]
    return any(sigmoid is not None and sigmoid.inputs[0] is values for sigmoid in sigmoids)


def convolve_linear_layers(graph: ir.Graph) -> None:
    """Write linear layers of codes [N, I] as 1x1 convolutions on one image [1, I, N, 1], whose rows are the batch.

    OpenVINO's kernel for these reads weights as fast as the memory gives them, and the one for linear layers does not.
    """
    for gemm in [node for node in graph if node.op_type == "Gemm"]:
        values, weight, *bias = gemm.inputs
        dequantize = made_by(weight, "DequantizeLinear")
        codes = None if dequantize is None else constant(dequantize.inputs[0])
        if dequantize is None or codes is None or made_by(values, "DequantizeLinear") is None:
            continue
        tape = ir.tape.Tape(graph)
        kernel, before, after = (
            tape.initializer(ir.tensor(each), f"{gemm.name}_{what}")
            for what, each in {
                "kernel": codes[..., None, None],
                "rows": np.array([1, -1, 1, codes.shape[1]]),
                "products": np.array([-1, codes.shape[0]]),
            }.items()
        )
        weights = tape.op("DequantizeLinear", [kernel, *dequantize.inputs[1:]], {"axis": 0})
        rows = tape.op("Transpose", [tape.op("Reshape", [values, before])], {"perm": [0, 3, 1, 2]})
        products = tape.op("Conv", [rows, weights, *bias], {"kernel_shape": [1, 1]}, name=gemm.name)
        result = tape.op("Reshape", [tape.op("Transpose", [products], {"perm": [0, 2, 3, 1]}), after])
        ir.convenience.replace_nodes_and_values(graph, gemm, [gemm], tape.nodes, gemm.outputs, [result])
