"""Executes a Q/DQ program on integers, as hardware without floating point would.

The reference computes with the values that codes stand for. Here the codes themselves are computed with, at their
zero points' distance q - z:

- a layer sums products of codes in 32 bits, adds its bias in their unit s_x s_w, and keeps that unit;
- rectifiers, pooling and whatever only moves values work on codes or sums as they are;
- additions bring both sides to one fine scale by multipliers; averages are sums, divided where they become codes;
- a value becomes a code again by one multiplication: clamp(round(m q) + z, lo, hi) with m = s / s_y.

The last layer's sums are not made codes. Images are quantized on the way in, logits are sums times their scale. Any
other operation (hard-swish, say) is computed in float32 between its codes, and listed.

Paper: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
(arXiv 1712.05877), section 2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_aggregate

from bitsweep.errors import CompressionError
from bitsweep.graphs import im2col
from bitsweep.graphs.ops import LAYER_KINDS, aten, quantized
from bitsweep.quantization.operations import ENLARGEMENTS, MOVES

#: Sums of two operands on a common scale stay below this, well within 32 bits.
LARGEST_OPERAND = 2**29
#: float32 holds every integer up to this, and so every partial sum of products that cannot exceed it.
EXACT_IN_FLOAT32 = 2**24


@dataclass(frozen=True, kw_only=True)
class Integers:
    """A tensor of integers that stand for ``scale`` times themselves.

    Attributes:
        values: int32.
        scale: float64, [] or broadcastable to ``values``.
        largest: magnitude that the values cannot exceed; None for sums of products.
    """

    values: Tensor
    scale: Tensor
    largest: int | None = None

    @property
    def floats(self) -> Tensor:
        """What the integers stand for, float32."""
        return (self.values.double() * self.scale).float()


class IntegerInterpreter(Interpreter):
    """Runs a Q/DQ program on integers: float32 images [N, 3, H, W] to float32 logits [N, K].

    A sum that does not fit in 32 bits raises a ``CompressionError``.

    Attributes:
        float_operations: name -> operation of what was computed in float32 in the last run.
    """

    def __init__(self, program: ExportedProgram, *, keep_values: bool = False) -> None:
        graph = program.module(check_guards=False)
        assert isinstance(graph, GraphModule)
        super().__init__(graph, garbage_collect_values=not keep_values)
        self.float_operations: dict[str, str] = {}

    def run_node(self, n: Node) -> Any:
        """A tensor of codes or floats, or ``Integers``."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        operation = OPERATIONS.get(n.target)
        if operation is not None and not kwargs:
            result = operation(n, *args)
            if result is not None:
                return result
        result = getattr(self, n.op)(n.target, _floats(args), _floats(kwargs))
        if n.op == "call_function" and n.target not in CODING and _is_float(result):
            self.float_operations[n.name] = str(n.target)
        return result


def accumulate(layer: Node, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Sums of products of a convolution or linear layer, exactly.

    Args:
        x: int32, [N, C, ...], or [..., I] for a linear layer.
        weight: int32 [O, ...].
        bias: int32 [O].

    Returns:
        int32, [N, O, ...] or [..., O].

    Raises:
        CompressionError: a sum needs more than 32 bits.
    """
    groups = im2col.groups_of(layer)
    weight_GOI = im2col.weight_matrix(weight, groups)
    largest = int(x.abs().max()) * int(weight_GOI.abs().sum(2).max())
    dtype = torch.float32 if largest <= EXACT_IN_FLOAT32 else torch.float64
    sums_GOP = weight_GOI.to(dtype) @ im2col.patches(x.to(dtype), layer, weight)
    sums_OP = _int32(sums_GOP.flatten(0, 1), layer)
    if bias is not None:
        sums_OP = _int32(sums_OP.long() + bias[:, None], layer)
    if LAYER_KINDS[layer.target] == "linear":
        return sums_OP.mT.reshape(*x.shape[:-1], -1)
    shape = layer.meta["val"].shape[2:]
    return sums_OP.reshape(-1, len(x), math.prod(shape)).movedim(0, 1).reshape(len(x), -1, *shape)


def rescale(values: Tensor, multiplier: Tensor) -> Tensor:
    """Integers on another scale: round(m q), half to even, as integral float64."""
    return (values.double() * multiplier).round_()


# --------------------------------------------------------------------------- codes


def _quantize(node: Node, x: Any, scale: float, zero_point: int, lo: int, hi: int, dtype: torch.dtype) -> Tensor | None:
    if not isinstance(x, Integers):
        return None
    return rescale(x.values, x.scale / scale).add_(zero_point).clamp_(lo, hi).to(dtype)


def _dequantize(
    node: Node, codes: Tensor, scale: float, zero_point: int, lo: int, hi: int, dtype: torch.dtype
) -> Integers:
    largest = max(abs(lo - zero_point), abs(hi - zero_point))
    return Integers(values=codes.int() - zero_point, scale=torch.tensor(scale, dtype=torch.float64), largest=largest)


def _dequantize_channels(
    node: Node, codes: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int, lo: int, hi: int, dtype: torch.dtype
) -> Integers:
    shape = [-1 if dim == axis else 1 for dim in range(codes.ndim)]
    values = codes.int() if zero_point is None else codes.int() - zero_point.int().view(shape)
    return Integers(values=values, scale=scale.double().view(shape))


# --------------------------------------------------------------------------- arithmetic


def _layer(node: Node, x: Any, weight: Any, bias: Any = None, *geometry: Any) -> Integers | None:
    if not (isinstance(x, Integers) and isinstance(weight, Integers)) or x.scale.ndim:
        return None
    scale = x.scale * weight.scale.flatten()  # [O] or [1]
    sums = accumulate(node, x.values, weight.values, None if bias is None else in_units(bias, scale))
    if scale.numel() == 1:
        return Integers(values=sums, scale=scale[0])
    return Integers(values=sums, scale=scale.view(-1, *[1] * (sums.ndim - 2 if _is_convolution(node) else 0)))


def in_units(bias: "Tensor | Integers", scale: Tensor) -> Tensor:
    """A bias in units of the sums that it is added to: clamp(round(b / s)), int32 [O].

    Codes that are in these units already are taken as they are.

    Args:
        bias: float32 [O], or its codes.
        scale: of the sums, float64 [O] or [1].
    """
    if isinstance(bias, Integers):
        if torch.allclose(bias.scale.flatten(), scale, rtol=1e-6, atol=0):
            return bias.values
        bias = bias.floats
    ends = torch.iinfo(torch.int32)
    return torch.round(bias.double() / scale).clamp(ends.min, ends.max).int()


def _add(node: Node, a: Any, b: Any) -> Integers | None:
    if not (_is_codes(a) and _is_codes(b)):
        return None
    largest = max(a.largest, b.largest)
    scale = torch.maximum(a.scale, b.scale) * largest / LARGEST_OPERAND
    sums = rescale(a.values, a.scale / scale) + rescale(b.values, b.scale / scale)
    return Integers(values=_int32(sums, node), scale=scale)


def _multiply(node: Node, a: Any, b: Any) -> Integers | None:
    if not (_is_codes(a) and _is_codes(b)):
        return None
    return Integers(values=_int32(a.values.long() * b.values, node), scale=a.scale * b.scale)


def _clamp(node: Node, x: Any, lo: float, hi: float) -> Integers | None:
    if not isinstance(x, Integers):
        return None
    ends = torch.iinfo(torch.int32)
    bounds = [torch.round(end / x.scale).clamp(ends.min, ends.max).int() for end in (lo, hi)]
    return replace(x, values=torch.minimum(torch.maximum(x.values, bounds[0]), bounds[1]))


def _relu(node: Node, x: Any) -> Integers | None:
    return _clamp(node, x, 0.0, math.inf)


def _relu6(node: Node, x: Any) -> Integers | None:
    return _clamp(node, x, 0.0, 6.0)


def _hardtanh(node: Node, x: Any, lo: float = -1.0, hi: float = 1.0) -> Integers | None:
    return _clamp(node, x, lo, hi)


# --------------------------------------------------------------------------- averages and moves


def _mean(node: Node, x: Any, dim: list[int], keepdim: bool = False) -> Integers | None:
    if not isinstance(x, Integers) or x.scale.ndim:
        return None
    count = math.prod(x.values.shape[axis] for axis in dim)
    return Integers(values=_int32(x.values.sum(dim, keepdim), node), scale=x.scale / count)


def _adaptive_average(node: Node, x: Any, output_size: list[int]) -> Integers | None:
    if not isinstance(x, Integers) or x.scale.ndim:
        return None
    *channels, height, width = x.values.shape
    rows, columns = output_size
    if rows % height == 0 and columns % width == 0:
        return replace(x, values=x.values.repeat_interleave(rows // height, -2).repeat_interleave(columns // width, -1))
    if height % rows or width % columns:
        return None
    sums = x.values.reshape(*channels, rows, height // rows, columns, width // columns).sum((-3, -1))
    return Integers(values=_int32(sums, node), scale=x.scale * (rows * columns) / (height * width))


def _move(node: Node, x: Any, *how: Any) -> Integers | None:
    if not isinstance(x, Integers) or x.scale.ndim:
        return None
    assert callable(node.target)
    return replace(x, values=node.target(x.values, *how))


def _enlarge(node: Node, x: Any, *how: Any) -> Integers | None:
    """Rows and columns are repeated in float64, which holds the integers: there is no kernel for them."""
    if not isinstance(x, Integers) or x.scale.ndim:
        return None
    assert callable(node.target)
    return replace(x, values=node.target(x.values.double(), *how).int())


def _pad(node: Node, x: Any, padding: list[int], mode: str = "constant", value: float | None = None) -> Integers | None:
    return None if value else _move(node, x, padding, mode)


def _concatenate(node: Node, parts: list[Any], dim: int = 0) -> Integers | None:
    if not all(_is_codes(part) and torch.equal(part.scale, parts[0].scale) for part in parts):
        return None
    values = torch.cat([part.values for part in parts], dim)
    return Integers(values=values, scale=parts[0].scale, largest=max(part.largest for part in parts))


OPERATIONS: dict[Any, Callable[..., Any]] = {
    quantized.quantize_per_tensor.default: _quantize,
    quantized.dequantize_per_tensor.default: _dequantize,
    quantized.dequantize_per_channel.default: _dequantize_channels,
    **dict.fromkeys(LAYER_KINDS, _layer),
    aten.add.Tensor: _add,
    aten.mul.Tensor: _multiply,
    aten.relu.default: _relu,
    aten.relu6.default: _relu6,
    aten.hardtanh.default: _hardtanh,
    aten.mean.dim: _mean,
    aten.adaptive_avg_pool2d.default: _adaptive_average,
    **dict.fromkeys(MOVES, _move),
    **dict.fromkeys(ENLARGEMENTS, _enlarge),
    aten.pad.default: _pad,
    aten.cat.default: _concatenate,
}
#: Operations between floats and codes, by which images enter and float operations are surrounded.
CODING = {quantized.quantize_per_tensor.default, quantized.dequantize_per_tensor.default}


def _int32(values: Tensor, node: Node) -> Tensor:
    ends = torch.iinfo(torch.int32)
    lo, hi = torch.aminmax(values)
    if lo < ends.min or hi > ends.max:
        raise CompressionError(
            f"sums of {node.name} do not fit in 32 bits; choose fewer bits, for instance precision=int8_symmetric"
        )
    return values.int()


def _is_convolution(node: Node) -> bool:
    return LAYER_KINDS[node.target] != "linear"


def _is_codes(value: Any) -> bool:
    return isinstance(value, Integers) and value.largest is not None


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _floats(values: Any) -> Any:
    return map_aggregate(values, lambda value: value.floats if isinstance(value, Integers) else value)
