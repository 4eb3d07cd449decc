"""Q/DQ graphs on PyTorch's own integer kernels: ``torch.ops.quantized`` on tensors that carry scale and zero point.

A kernel takes the place of a dequantization, an operation and a quantization, and of a rectifier between the last two.
Codes are unsigned bytes: signed ones are shifted by 128, and so are their zero points. What no kernel matches stays in
float between a dequantization and a quantization. So do averages whose scale is not that of their input: kernels would
round them twice.
"""

import math
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from bitsweep.backends.torch_quantized.kernels import (
    DEQUANTIZE,
    KERNELS,
    LARGEST,
    QUANTIZE,
    Coding,
    kernels,
    linear_to_floats,
)
from bitsweep.errors import CompressionError
from bitsweep.graphs.constants import fold_constants
from bitsweep.graphs.normal_form import place_of, refuse_groups_of_images
from bitsweep.graphs.ops import (
    arguments,
    aten,
    attribute,
    bias_of,
    reads_attribute,
    tidy,
)

#: TorchScript writes larger floats as integers, where they are whole numbers.
LARGEST_SCALE = 1e10


def lowered(program: ExportedProgram) -> GraphModule:
    """Graph of a program that computes on the integer kernels of the engine that PyTorch is set to.

    Raises:
        CompressionError: an operation on codes has no kernel and cannot be computed in float either.
        RuntimeError: the engine does not take the weights of a layer.
    """
    graph = program.module(check_guards=False)
    assert isinstance(graph, GraphModule)
    Lowering(graph).run()
    for check in graph.graph.find_nodes(op="call_function", target=aten._assert_tensor_metadata.default):
        graph.graph.erase_node(check)
    tidy(graph)
    if any(map(_is_simulated, graph.graph.nodes)):
        fold_constants(graph)
    for node in graph.graph.nodes:
        if _is_simulated(node):
            raise CompressionError(f"{node.name} ({node.target}) has no kernel in PyTorch: use backend=reference")
    return graph


def _is_simulated(node: Node) -> bool:
    """Whether a node is an operation of Q/DQ programs, which PyTorch knows in simulation only."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "quantized_decomposed"


class Lowering:
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
            return linear_to_floats(self, node)
        refuse_groups_of_images(node, "TorchScript")
        return None

    def _quantize(self, node: Node) -> Node:
        coding, source = Coding.of(node), arguments(node)[0]
        if coding.scale >= LARGEST_SCALE:
            raise CompressionError(
                f"{place_of(source)} yields values up to {abs(coding.value(coding.hi)):.1g}, which files of "
                "TorchScript do not hold as scales; train with a lower learning rate, or use backend=onnxruntime"
            )
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
