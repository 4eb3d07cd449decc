"""Parts of ONNX graphs as PyTorch has one operation for, so that methods and engines know them again.

- A product by weights is a linear layer, with weights [O, I], and what is added to it its bias.
- What exporters without such an operation made of SiLU, hard-swish and GELU.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

from bitsweep.graphs.onnx.reading import OnnxGraph, OnnxNode
from bitsweep.graphs.onnx.rewriting import Rewriter, made


def fused(graph: OnnxGraph) -> OnnxGraph:
    """A graph with linear layers and activation functions as such."""
    for rewrite in (_linear, _bias, _hard_sigmoid, _gated, _gelu):
        graph = Rewriter(graph).replaced(rewrite)
    return graph


def _linear(edit: Rewriter, node: OnnxNode) -> Iterable[OnnxNode] | None:
    """A product by a constant matrix."""
    if node.op not in ("MatMul", "Gemm") or node.get("transA", 0) or node.get("alpha", 1.0) != 1.0:
        return None
    if node.op == "Gemm" and node.input(2) and (node.get("beta", 1.0) != 1.0 or not _is_bias(edit, node.input(2))):
        return None
    x, weight = node.inputs[:2]
    codes = edit.maker(weight, "DequantizeLinear")
    stored = codes.inputs[0] if codes else weight
    if stored not in edit.constants or edit.constants[stored].ndim != 2:
        return None
    before: list[OnnxNode] = []
    if not node.get("transB", 0):
        turned = edit.constant(f"{stored}.transposed", edit.constants[stored].T)
        if codes:
            axis = 1 - codes.get("axis", 1) % 2
            before = [replace(codes, inputs=(turned, *codes.inputs[1:]), outputs=(f"{weight}.transposed",),
                              attributes={**codes.attributes, "axis": axis})]  # fmt: skip
            weight = f"{weight}.transposed"
        else:
            weight = turned
    return [*before, made("Linear", x, weight, *node.inputs[2:3], into=node.outputs[0], like=node)]


def _is_bias(edit: Rewriter, name: str) -> bool:
    """Whether a tensor is one constant for each output."""
    codes = edit.maker(name, "DequantizeLinear")
    stored = edit.constants.get(codes.inputs[0] if codes else name)
    return stored is not None and stored.ndim == 1


def _bias(edit: Rewriter, node: OnnxNode) -> Iterable[OnnxNode] | None:
    """A constant that is added to a linear layer without one."""
    if node.op != "Add":
        return None
    for product, bias in (node.inputs, reversed(node.inputs)):
        layer = edit.maker(product, "Linear")
        if layer and len(layer.inputs) == 2 and edit.read_once(product) and _is_bias(edit, bias):
            codes = edit.maker(layer.inputs[1], "DequantizeLinear")
            weight = edit.constants[codes.inputs[0] if codes else layer.inputs[1]]
            stored = edit.maker(bias, "DequantizeLinear")
            if edit.constants[stored.inputs[0] if stored else bias].shape == weight.shape[:1]:
                return [replace(layer, inputs=(*layer.inputs, bias), outputs=node.outputs)]
    return None


def _hard_sigmoid(edit: Rewriter, node: OnnxNode) -> Iterable[OnnxNode] | None:
    """clip(x + 3, 0, 6) / 6."""
    if node.op == "Div" and edit.number(node.inputs[1]) == 6:
        clipped = edit.maker(node.inputs[0], "Clip")
    elif node.op == "Mul":
        clipped = next((edit.maker(x, "Clip") for x, by in _both_ways(node) if _near(edit.number(by), 1 / 6)), None)
    else:
        return None
    x = _shifted(edit, clipped)
    return x and [made("HardSigmoid", x, into=node.outputs[0], like=node, attributes={"alpha": 1 / 6})]  # type: ignore[return-value]


def _shifted(edit: Rewriter, clipped: OnnxNode | None) -> str | None:
    """x of clip(x + 3, 0, 6)."""
    if clipped is None:
        return None
    ends = [
        clipped.get(name) if not clipped.input(at) else edit.number(clipped.input(at))
        for at, name in ((1, "min"), (2, "max"))
    ]
    added = edit.maker(clipped.inputs[0], "Add")
    if ends != [0, 6] or added is None:
        return None
    return next((x for x, by in _both_ways(added) if edit.number(by) == 3), None)


def _gated(edit: Rewriter, node: OnnxNode) -> Iterable[OnnxNode] | None:
    """x sigmoid(x) and x hard-sigmoid(x); also x clip(x + 3, 0, 6) before it is divided by 6."""
    if node.op == "Div" and edit.number(node.inputs[1]) == 6:
        product = edit.maker(node.inputs[0], "Mul")
        for x, gate in _both_ways(product) if product else ():
            if _shifted(edit, edit.maker(gate, "Clip")) == x:
                return [made("HardSwish", x, into=node.outputs[0], like=node)]
    if node.op != "Mul":
        return None
    for x, gate in _both_ways(node):
        sigmoid = edit.maker(gate, "Sigmoid", "HardSigmoid")
        if sigmoid is None or sigmoid.inputs[0] != x:
            continue
        if sigmoid.op == "Sigmoid":
            return [made("Silu", x, into=node.outputs[0], like=node)]
        if _near(sigmoid.get("alpha", 0.2), 1 / 6) and sigmoid.get("beta", 0.5) == 0.5:
            return [made("HardSwish", x, into=node.outputs[0], like=node)]
    return None


def _gelu(edit: Rewriter, node: OnnxNode) -> Iterable[OnnxNode] | None:
    """x (1 + erf(x / sqrt 2)) / 2, whichever of the three factors comes last."""
    if node.op != "Mul":
        return None
    factors = _factors(edit, node)
    numbers = [edit.number(name) for name in factors]
    rest = [name for name, number in zip(factors, numbers, strict=True) if number is None]
    if len(factors) != 3 or len(rest) != 2 or not any(_near(number, 0.5) for number in numbers):
        return None
    for x, gate in (rest, rest[::-1]):
        added = edit.maker(gate, "Add")
        erf = (
            next((edit.maker(part, "Erf") for part, one in _both_ways(added) if edit.number(one) == 1), None)
            if added
            else None
        )
        scaled = edit.maker(erf.inputs[0], "Div", "Mul") if erf else None
        if scaled is None:
            continue
        wanted = math.sqrt(2) if scaled.op == "Div" else math.sqrt(0.5)
        if any(part == x and _near(edit.number(by), wanted) for part, by in _both_ways(scaled)):
            return [made("Gelu", x, into=node.outputs[0], like=node)]
    return None


def _factors(edit: Rewriter, node: OnnxNode) -> list[str]:
    """What a product of up to three factors multiplies."""
    for product, other in _both_ways(node):
        inner = edit.maker(product, "Mul", "Div")
        if inner is None or not edit.read_once(product):
            continue
        if inner.op == "Mul":
            return [*inner.inputs, other]
    return list(node.inputs)


def _both_ways(node: OnnxNode) -> tuple[tuple[str, str], ...]:
    first, second = node.inputs[:2]
    return ((first, second),) if node.op == "Div" else ((first, second), (second, first))


def _near(number: float | None, wanted: float) -> bool:
    return number is not None and math.isclose(number, wanted, rel_tol=1e-4)
