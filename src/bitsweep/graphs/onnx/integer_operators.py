"""Operations from codes to codes, written out: dequantize, compute, quantize."""

from collections.abc import Callable, Iterator

import numpy as np

from bitsweep.graphs.onnx.reading import OnnxGraph, OnnxNode
from bitsweep.graphs.onnx.rewriting import Rewriter, made

#: Operations that read values from one tensor of codes, and the float operations that they compute.
_OF_ONE = {
    "QLinearGlobalAveragePool": "GlobalAveragePool",
    "QLinearAveragePool": "AveragePool",
    "QLinearSigmoid": "Sigmoid",
    "QLinearLeakyRelu": "LeakyRelu",
    "QLinearSoftmax": "Softmax",
    "QLinearReduceMean": "ReduceMean",
}
_OF_TWO = {"QLinearAdd": "Add", "QLinearMul": "Mul"}


def with_pairs(graph: OnnxGraph) -> OnnxGraph:
    """A graph of QuantizeLinear and DequantizeLinear around float operations, of one of integer operations."""
    return Rewriter(graph).replaced(_rewritten)


def _rewritten(edit: Rewriter, node: OnnxNode) -> Iterator[OnnxNode] | None:
    op = node.op.removeprefix("com.microsoft.")
    if op in _OF_ONE:
        return _computed(node, _OF_ONE[op], 1, node.inputs[3:5])
    if op in _OF_TWO:
        return _computed(node, _OF_TWO[op], 2, node.inputs[6:8])
    rewrite = _REWRITES.get(op)
    return rewrite(edit, node) if rewrite else None


def _computed(node: OnnxNode, op: str, count: int, output: tuple[str, ...], start: int = 0) -> Iterator[OnnxNode]:
    """So many triples of codes, scale and zero point; the operation; and the codes of its result."""
    values = []
    for number in range(count):
        triple = node.inputs[start + 3 * number : start + 3 * number + 3]
        values.append(f"{node.outputs[0]}.value{number}")
        yield made("DequantizeLinear", *triple, into=values[-1], like=node)
    yield made(op, *values, into=f"{node.outputs[0]}.value", like=node, attributes=node.attributes)
    yield made("QuantizeLinear", f"{node.outputs[0]}.value", *output, into=node.outputs[0], like=node)


def _concat(edit: Rewriter, node: OnnxNode) -> Iterator[OnnxNode]:
    return _computed(node, "Concat", (len(node.inputs) - 2) // 3, node.inputs[:2], start=2)


def _convolution(edit: Rewriter, node: OnnxNode) -> Iterator[OnnxNode]:
    x, x_scale, x_zero, weight, w_scale, w_zero, *output = node.inputs[:8]
    bias, result = node.input(8), node.outputs[0]
    values = [f"{result}.value", f"{result}.weight"]
    yield made("DequantizeLinear", x, x_scale, x_zero, into=values[0], like=node)
    yield made("DequantizeLinear", weight, w_scale, w_zero, into=values[1], like=node, attributes={"axis": 0})
    if bias:
        scale = edit.constant(f"{result}.bias_scale", edit.constants[x_scale] * edit.constants[w_scale].reshape(-1))
        values.append(f"{result}.bias")
        yield made("DequantizeLinear", bias, scale, into=values[-1], like=node, attributes={"axis": 0})
    yield made("Conv", *values, into=f"{result}.float", like=node, attributes=node.attributes)
    yield made("QuantizeLinear", f"{result}.float", *output, into=result, like=node)


def _product(edit: Rewriter, node: OnnxNode) -> Iterator[OnnxNode]:
    """Of matrices; weights have a scale for each column."""
    x, x_scale, x_zero, y, y_scale, y_zero, *output = node.inputs
    result = node.outputs[0]
    axis = edit.constants[y].ndim - 1 if y in edit.constants else 0
    yield made("DequantizeLinear", x, x_scale, x_zero, into=f"{result}.x", like=node)
    yield made("DequantizeLinear", y, y_scale, y_zero, into=f"{result}.y", like=node, attributes={"axis": axis})
    yield made("MatMul", f"{result}.x", f"{result}.y", into=f"{result}.float", like=node)
    yield made("QuantizeLinear", f"{result}.float", *output, into=result, like=node)


def _general_product(edit: Rewriter, node: OnnxNode) -> Iterator[OnnxNode]:
    """With a bias, whose scale is that of the products; the result is codes where a scale for them is given."""
    x, x_scale, x_zero, y, y_scale, y_zero = node.inputs[:6]
    bias, output, result = node.input(6), [name for name in node.inputs[7:9] if name], node.outputs[0]
    transposed = node.get("transB", 0)
    values = [f"{result}.x", f"{result}.y"]
    yield made("DequantizeLinear", x, x_scale, x_zero, into=values[0], like=node)
    axis = {"axis": 0 if transposed else 1}
    yield made("DequantizeLinear", y, y_scale, y_zero, into=values[1], like=node, attributes=axis)
    if bias:
        scale = edit.constants[x_scale] * edit.constants[y_scale].reshape(-1) * np.float32(node.get("alpha", 1.0))
        edit.constant(f"{result}.bias_scale", scale)
        values.append(f"{result}.bias")
        yield made("DequantizeLinear", bias, f"{result}.bias_scale", into=values[-1], like=node, attributes={"axis": 0})
    floats = f"{result}.float" if output else result
    yield made("Gemm", *values, into=floats, like=node, attributes=node.attributes)
    if output:
        yield made("QuantizeLinear", floats, *output, into=result, like=node)


_REWRITES: dict[str, Callable[[Rewriter, OnnxNode], Iterator[OnnxNode]]] = {
    "QLinearConv": _convolution,
    "QLinearMatMul": _product,
    "QGemm": _general_product,
    "QLinearConcat": _concat,
}
