"""Q/DQ graphs on PyTorch's own integer kernels: ``torch.ops.quantized`` on tensors that carry scale and zero point.

A kernel takes the place of a dequantization, an operation and a quantization, and of a rectifier between the last two.
Codes are unsigned bytes: signed ones are shifted by 128, and so are their zero points. What no kernel matches stays in
float between a dequantization and a quantization. So do averages whose scale is not that of their input: kernels would
round them twice.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from bitsweep.errors import CompressionError
from bitsweep.graphs.constants import fold_constants
from bitsweep.graphs.im2col import geometry
from bitsweep.graphs.ops import (
    arguments,
    aten,
    attribute,
    bias_of,
    drop_unread,
    quantized,
    reads_attribute,
    set_attribute,
)
from bitsweep.quantization.placement import MOVES

kernels = torch.ops.quantized
QUANTIZE, DEQUANTIZE = quantized.quantize_per_tensor.default, quantized.dequantize_per_tensor.default
#: Largest code of a byte.
LARGEST = 255


@dataclass(frozen=True, kw_only=True)
class Coding:
    """How the codes q of a tensor stand for values, s (q - z): bytes from ``lo`` to ``hi``."""

    scale: float
    zero_point: int
    lo: int
    hi: int

    @classmethod
    def of(cls, quantize: Node) -> "Coding":
        """The coding that a quantization of the Q/DQ graph writes."""
        _, scale, zero_point, lo, hi, dtype = arguments(quantize)
        assert dtype in (torch.int8, torch.uint8)
        shift = 128 if dtype == torch.int8 else 0
        return cls(scale=scale, zero_point=zero_point + shift, lo=lo + shift, hi=hi + shift)

    @property
    def qparams(self) -> tuple[float, int]:
        """Scale and zero point, as kernels take them."""
        return self.scale, self.zero_point

    def value(self, code: int) -> float:
        """What a code stands for."""
        return self.scale * (code - self.zero_point)


def lowered(program: ExportedProgram) -> GraphModule:
    """Graph of a program that computes on the integer kernels of the engine that PyTorch is set to.

    Raises:
        CompressionError: an operation on codes has no kernel and cannot be computed in float either.
        RuntimeError: the engine does not take the weights of a layer.
    """
    graph = program.module(check_guards=False)
    assert isinstance(graph, GraphModule)
    _Lowering(graph).run()
    for check in graph.graph.find_nodes(op="call_function", target=aten._assert_tensor_metadata.default):
        graph.graph.erase_node(check)
    graph.graph.eliminate_dead_code()
    if any(map(_is_simulated, graph.graph.nodes)):
        fold_constants(graph)
    for node in graph.graph.nodes:
        if _is_simulated(node):
            raise CompressionError(f"{node.name} ({node.target}) has no kernel in PyTorch: use backend=reference")
    drop_unread(graph)
    graph.recompile()
    return graph


def _is_simulated(node: Node) -> bool:
    """Whether a node is an operation of Q/DQ programs, which PyTorch knows in simulation only."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "quantized_decomposed"


class _Lowering:
    """One pass over a graph in the order in which it runs, so that every operation finds its operands lowered."""

    def __init__(self, graph: GraphModule) -> None:
        self.graph = graph
        self.codings: dict[Node, Coding] = {}

    def run(self) -> None:
        for node in list(self.graph.graph.nodes):
            with self.graph.graph.inserting_before(node):
                lowered = self._lowered(node)
            if lowered is not None:
                lowered.meta.setdefault("val", node.meta["val"])
                node.replace_all_uses_with(lowered)
            elif node.target in (aten.view.default, aten.reshape.default):
                # Outputs of kernels are channels last, which may have no view in that shape.
                node.target, node.args = aten.reshape.default, (node.args[0], _of_any_batch(node))

    def call(self, operation: Any, *args: Any, **kwargs: Any) -> Node:
        """A new node."""
        return self.graph.graph.call_function(operation, args, kwargs)

    def keep(self, name: str, packed: Any) -> Node:
        """A node with packed weights as its value."""
        setattr(self.graph, name, packed)
        return self.graph.graph.create_node("get_attr", name)

    def codes_of(self, argument: Any) -> Node | None:
        """The codes that an argument is dequantized from."""
        if isinstance(argument, Node) and argument.target == aten.dequantize.self:
            codes = argument.args[0]
            return codes if codes in self.codings else None  # type: ignore[return-value]
        return None

    def weight_of(self, layer: Node, *, unit: float = 1.0, pointwise: bool = False) -> Tensor | None:
        """The weights of a layer, times a unit, as a quantized tensor; None where they are no signed bytes.

        Args:
            pointwise: whether those of a linear layer [O, I] are given as a 1x1 convolution's, [O, I, 1, 1].
        """
        weight = arguments(layer)[1]
        if weight.op == "get_attr" or not reads_attribute(weight.args[0]):
            return None
        codes = attribute(self.graph, weight.args[0])
        if codes.dtype != torch.int8:
            return None
        codes = codes[..., None, None] if pointwise else codes
        with warnings.catch_warnings():
            # PyTorch calls tensors that carry a scale deprecated; its kernels take no others.
            warnings.simplefilter("ignore")
            if weight.target == DEQUANTIZE:
                scale, zero_point, *_ = arguments(weight)[1:]
                return torch._make_per_tensor_quantized_tensor(codes, scale * unit, zero_point)
            scale, zero_point = (attribute(self.graph, argument) for argument in weight.args[1:3])
            return torch._make_per_channel_quantized_tensor(codes, scale.double() * unit, zero_point.long(), 0)

    def float_bias_of(self, layer: Node) -> Tensor | None:
        """The bias of a layer; kernels round it to the unit of their sums, where its own codes are."""
        bias = bias_of(layer)
        if bias is None or bias.op == "get_attr":
            return None if bias is None else attribute(self.graph, bias)
        assert callable(bias.target)
        value = bias.target(*(attribute(self.graph, each) if isinstance(each, Node) else each for each in bias.args))
        assert isinstance(value, Tensor)
        return value

    def _lowered(self, node: Node) -> Node | None:
        """What takes the place of a node, if anything does."""
        if node.target == QUANTIZE:
            return self._quantize(node)
        if node.target == DEQUANTIZE and node.args[0] in self.codings:
            return self.call(aten.dequantize.self, node.args[0])
        if node.target == aten.linear.default:
            return _linear_to_floats(self, node)
        return None

    def _quantize(self, node: Node) -> Node:
        coding, source = Coding.of(node), arguments(node)[0]
        read = self.codes_of(source)
        if read is not None and self.codings[read] == coding:
            return read
        operation, ceiling = _without_rectifier(source)
        lower = KERNELS.get(operation.target)
        codes = lower(self, operation, coding, operation is not source) if lower else None
        if codes is None:
            operation, ceiling = source, math.inf
            codes = self.call(aten.quantize_per_tensor.default, source, *coding.qparams, torch.quint8)
        # The output of the kernel, and the part of it that the Q/DQ graph has.
        lowest = 0 if operation is source else coding.zero_point
        top = round(min(coding.value(LARGEST), ceiling) / coding.scale) + coding.zero_point
        lo, hi = max(lowest, coding.lo), min(top, coding.hi)
        if (lo, hi) != (lowest, LARGEST):
            codes = self._clamp(codes, node, coding.value(lo), coding.value(hi))
        self.codings[codes] = coding
        return codes

    def _clamp(self, codes: Node, node: Node, lo: float, hi: float) -> Node:
        if node.meta["val"].ndim != 4:
            return self.call(kernels.clamp.default, codes, lo, hi)
        # QNNPACK's kernel takes channels-last tensors for contiguous ones; seen from the other side they are.
        rows = self.call(aten.permute.default, codes, [0, 2, 3, 1])
        return self.call(aten.permute.default, self.call(kernels.clamp.default, rows, lo, hi), [0, 3, 1, 2])


def _of_any_batch(node: Node) -> list[int]:
    """The shape that a node gives to a tensor, with -1 for a size that the number of images decides."""
    return [size if isinstance(size, int) else -1 for size in node.meta["val"].shape]


def _without_rectifier(node: Node) -> tuple[Node, float]:
    """The operation before a rectifier, and the most that it lets pass; the node itself where it is none."""
    source = node.args[0] if node.args else None
    if isinstance(source, Node):
        if node.target == aten.relu.default:
            return source, math.inf
        if node.target == aten.relu6.default:
            return source, 6.0
        if node.target == aten.hardtanh.default and node.args[1:2] == (0,):
            return source, float(node.args[2])  # type: ignore[arg-type]
    return node, math.inf


# --------------------------------------------------------------------------- kernels with codes as output


def _convolution(lowering: _Lowering, node: Node, coding: Coding, rectified: bool) -> Node | None:
    codes, weight = lowering.codes_of(node.args[0]), lowering.weight_of(node)
    if codes is None or weight is None:
        return None
    stride, padding, dilation, groups = geometry(node)
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if any(each % 2 for each in total):
            return None
        padding = [each // 2 for each in total]
    packed = kernels.conv2d_prepack(weight, lowering.float_bias_of(node), stride, padding, dilation, groups)
    kernel = kernels.conv2d_relu.new if rectified else kernels.conv2d.new
    return lowering.call(kernel, codes, lowering.keep(f"{node.name}_packed", packed), *coding.qparams)


def _linear(lowering: _Lowering, node: Node, coding: Coding, rectified: bool) -> Node | None:
    if torch.backends.quantized.engine == "onednn" and node.meta["val"].ndim == 2:
        return _pointwise_linear(lowering, node, coding, rectified)
    codes, weight = lowering.codes_of(node.args[0]), lowering.weight_of(node)
    if codes is None or weight is None:
        return None
    packed = kernels.linear_prepack(weight, lowering.float_bias_of(node))
    kernel = kernels.linear_relu.default if rectified else kernels.linear.default
    return lowering.call(kernel, codes, lowering.keep(f"{node.name}_packed", packed), *coding.qparams)


def _pointwise_linear(lowering: _Lowering, node: Node, coding: Coding, rectified: bool) -> Node | None:
    """A linear layer on [N, I] as a 1x1 convolution on [1, I, N, 1]: oneDNN's kernel for it is twice as fast."""
    codes, weight = lowering.codes_of(node.args[0]), lowering.weight_of(node, pointwise=True)
    if codes is None or weight is None:
        return None
    outputs, inputs, *_ = weight.shape
    packed = kernels.conv2d_prepack(weight, lowering.float_bias_of(node), [1, 1], [0, 0], [1, 1], 1)
    kernel = kernels.conv2d_relu.new if rectified else kernels.conv2d.new
    rows = lowering.call(
        aten.permute.default, lowering.call(aten.reshape.default, codes, [1, -1, 1, inputs]), [0, 3, 1, 2]
    )
    sums = lowering.call(kernel, rows, lowering.keep(f"{node.name}_packed", packed), *coding.qparams)
    return lowering.call(aten.reshape.default, lowering.call(aten.permute.default, sums, [0, 2, 3, 1]), [-1, outputs])


def _add(lowering: _Lowering, node: Node, coding: Coding, rectified: bool) -> Node | None:
    kernel = kernels.add_relu.default if rectified else kernels.add.default
    operands = _operands(lowering, node)
    return None if operands is None else lowering.call(kernel, *operands, *coding.qparams)


def _multiply(lowering: _Lowering, node: Node, coding: Coding, rectified: bool) -> Node | None:
    kernel = kernels.mul_relu.default if rectified else kernels.mul.default
    operands = _operands(lowering, node)
    return None if operands is None else lowering.call(kernel, *operands, *coding.qparams)


def _operands(lowering: _Lowering, node: Node) -> list[Node] | None:
    """The codes of both operands, in the shape of the result: kernels take five times as long where they broadcast."""
    operands = [lowering.codes_of(argument) for argument in node.args[:2]]
    if node.kwargs or None in operands:
        return None
    shapes = [argument.meta["val"].shape for argument in arguments(node)[:2]]
    if node.meta["val"].shape not in shapes:
        return None
    large = operands[shapes.index(node.meta["val"].shape)]
    layout = torch.channels_last if node.meta["val"].ndim == 4 else torch.contiguous_format
    return [
        codes  # type: ignore[misc]
        if shape == node.meta["val"].shape
        else lowering.call(
            aten.contiguous.default, lowering.call(aten.expand_as.default, codes, large), memory_format=layout
        )
        for codes, shape in zip(operands, shapes, strict=True)
    ]


def _concatenate(lowering: _Lowering, node: Node, coding: Coding, rectified: bool) -> Node | None:
    parts, *dim = arguments(node)
    codes = [lowering.codes_of(part) for part in parts]
    if None in codes or rectified:
        return None
    return lowering.call(kernels.cat.default, codes, *(dim or [0]), *coding.qparams)


def _function(kernel: Any) -> Callable[..., Node | None]:
    """A function of one tensor, by a kernel that takes scale and zero point of its output."""

    def lower(lowering: _Lowering, node: Node, coding: Coding, rectified: bool) -> Node | None:
        codes = lowering.codes_of(node.args[0])
        return None if codes is None or rectified else lowering.call(kernel, codes, *coding.qparams)

    return lower


def _sigmoid(lowering: _Lowering, node: Node, coding: Coding, rectified: bool) -> Node | None:
    if torch.backends.quantized.engine == "qnnpack" and coding.qparams != (1 / 256, 0):
        return None  # QNNPACK's kernel has no other output codes
    return _function(kernels.sigmoid.default)(lowering, node, coding, rectified)


def _move(lowering: _Lowering, node: Node, coding: Coding, rectified: bool) -> Node | None:
    """An operation that is the same on values and on their codes, as long as these keep their coding."""
    codes = lowering.codes_of(node.args[0])
    if codes is None or rectified or lowering.codings[codes] != coding:
        return None
    return lowering.call(node.target, codes, *node.args[1:], **node.kwargs)


def _pad(lowering: _Lowering, node: Node, coding: Coding, rectified: bool) -> Node | None:
    """Zeros or reflections around codes; there is no kernel that repeats their edges."""
    return None if node.args[2:3] == ("replicate",) else _move(lowering, node, coding, rectified)


KERNELS: dict[Any, Callable[[_Lowering, Node, Coding, bool], Node | None]] = {
    aten.conv2d.default: _convolution,
    aten.conv2d.padding: _convolution,
    aten.linear.default: _linear,
    aten.add.Tensor: _add,
    aten.mul.Tensor: _multiply,
    aten.cat.default: _concatenate,
    aten.hardswish.default: _function(kernels.hardswish.default),
    aten.sigmoid.default: _sigmoid,
    **dict.fromkeys(MOVES, _move),
    aten.pad.default: _pad,
    aten.adaptive_avg_pool2d.default: _move,
}


# --------------------------------------------------------------------------- kernels with floats as output


def _linear_to_floats(lowering: _Lowering, node: Node) -> Node | None:
    """A linear layer whose sums become floats; None where they become codes, or the layer reads none.

    The kernel spreads the 256 codes between the extremes of its input. Given the distances q - z of codes from
    their zero point, and a row of the largest distances that there can be, it finds these very codes again.
    """
    x, weight = arguments(node)[:2]
    if any(QUANTIZE in (user.target, *(each.target for each in user.users)) for user in node.users):
        return None
    codes, dynamic = lowering.codes_of(x), x.target == quantized.dequantize_per_tensor.tensor
    if codes is None and not dynamic:
        return None
    coding = None if codes is None else lowering.codings[codes]
    weight = lowering.weight_of(node, unit=1.0 if coding is None else coding.scale)
    if weight is None:
        return None
    packed = lowering.keep(f"{node.name}_packed", kernels.linear_prepack(weight, lowering.float_bias_of(node)))
    if coding is None:
        return lowering.call(kernels.linear_dynamic.default, x.args[0].args[0], packed, False)
    if x.meta["val"].ndim != 2 or weight.shape[1] < 2:
        return None
    extremes, path = torch.full((1, weight.shape[1]), 0.0 - coding.zero_point), f"{node.name}_extremes"
    extremes[:, 1::2] = LARGEST - coding.zero_point
    set_attribute(lowering.graph, path, extremes)
    distances = lowering.call(aten.mul.Scalar, x, 1 / coding.scale)
    rows = lowering.call(aten.cat.default, [distances, lowering.graph.graph.get_attr(path)])
    sums = lowering.call(kernels.linear_dynamic.default, rows, packed, False)
    return lowering.call(aten.slice.Tensor, sums, 0, 0, -1)
