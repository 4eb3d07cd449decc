"""Operations of Q/DQ graphs as PyTorch's integer kernels: a function for each, which gives None where none matches."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from bitsweep.graphs.im2col import geometry
from bitsweep.graphs.ops import arguments, aten, quantized, set_attribute
from bitsweep.quantization.operations import MOVES

if TYPE_CHECKING:
    from bitsweep.backends.torch_quantized.lowering import Lowering

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


def _convolution(lowering: "Lowering", node: Node, coding: Coding, rectified: bool) -> Node | None:
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


def _linear(lowering: "Lowering", node: Node, coding: Coding, rectified: bool) -> Node | None:
    if torch.backends.quantized.engine == "onednn" and node.meta["val"].ndim == 2:
        return _pointwise_linear(lowering, node, coding, rectified)
    codes, weight = lowering.codes_of(node.args[0]), lowering.weight_of(node)
    if codes is None or weight is None:
        return None
    packed = kernels.linear_prepack(weight, lowering.float_bias_of(node))
    kernel = kernels.linear_relu.default if rectified else kernels.linear.default
    return lowering.call(kernel, codes, lowering.keep(f"{node.name}_packed", packed), *coding.qparams)


def _pointwise_linear(lowering: "Lowering", node: Node, coding: Coding, rectified: bool) -> Node | None:
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


def _add(lowering: "Lowering", node: Node, coding: Coding, rectified: bool) -> Node | None:
    kernel = kernels.add_relu.default if rectified else kernels.add.default
    operands = _operands(lowering, node)
    return None if operands is None else lowering.call(kernel, *operands, *coding.qparams)


def _multiply(lowering: "Lowering", node: Node, coding: Coding, rectified: bool) -> Node | None:
    kernel = kernels.mul_relu.default if rectified else kernels.mul.default
    operands = _operands(lowering, node)
    return None if operands is None else lowering.call(kernel, *operands, *coding.qparams)


def _operands(lowering: "Lowering", node: Node) -> list[Node] | None:
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


def _concatenate(lowering: "Lowering", node: Node, coding: Coding, rectified: bool) -> Node | None:
    parts, *dim = arguments(node)
    codes = [lowering.codes_of(part) for part in parts]
    if None in codes or rectified:
        return None
    return lowering.call(kernels.cat.default, codes, *(dim or [0]), *coding.qparams)


def _function(kernel: Any) -> Callable[..., Node | None]:
    """A function of one tensor, by a kernel that takes scale and zero point of its output."""

    def lower(lowering: "Lowering", node: Node, coding: Coding, rectified: bool) -> Node | None:
        codes = lowering.codes_of(node.args[0])
        return None if codes is None or rectified else lowering.call(kernel, codes, *coding.qparams)

    return lower


def _sigmoid(lowering: "Lowering", node: Node, coding: Coding, rectified: bool) -> Node | None:
    if torch.backends.quantized.engine == "qnnpack" and coding.qparams != (1 / 256, 0):
        return None  # QNNPACK's kernel has no other output codes
    return _function(kernels.sigmoid.default)(lowering, node, coding, rectified)


def _move(lowering: "Lowering", node: Node, coding: Coding, rectified: bool) -> Node | None:
    """An operation that is the same on values and on their codes, as long as these keep their coding."""
    codes = lowering.codes_of(node.args[0])
    if codes is None or rectified or lowering.codings[codes] != coding:
        return None
    return lowering.call(node.target, codes, *node.args[1:], **node.kwargs)


def _pad(lowering: "Lowering", node: Node, coding: Coding, rectified: bool) -> Node | None:
    """Zeros or reflections around codes; there is no kernel that repeats their edges."""
    return None if node.args[2:3] == ("replicate",) else _move(lowering, node, coding, rectified)


KERNELS: dict[Any, Callable[["Lowering", Node, Coding, bool], Node | None]] = {
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


def linear_to_floats(lowering: "Lowering", node: Node) -> Node | None:
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
