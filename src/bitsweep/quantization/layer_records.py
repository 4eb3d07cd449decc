"""Records of what happened to each layer, from the rewritten graph itself and not from the settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch.fx import GraphModule, Node

from bitsweep.config.precision import Grid
from bitsweep.graphs.ops import (
    FLOAT_KINDS,
    LAYER_KINDS,
    Layer,
    arguments,
    aten,
    attribute,
    bias_of,
    quantized,
    reads_attribute,
)
from bitsweep.quantization import grids
from bitsweep.quantization.lowrank.chains import product
from bitsweep.results import LayerRecord

_DEQUANTIZED = (quantized.dequantize_per_channel.default, quantized.dequantize_per_tensor.default)


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """What a parameter amounts to, and how it is stored: on a grid, or in a float format."""

    values: torch.Tensor
    format: str
    bits: int
    qparams: tuple[torch.Tensor, torch.Tensor, Grid] | None = None

    @property
    def ends(self) -> tuple[float, float] | None:
        """Values of the smallest and the largest code, where they are widest."""
        if self.qparams is None:
            return None
        scale, zero_point, grid = self.qparams
        return float(((grid.lo - zero_point) * scale).min()), float(((grid.hi - zero_point) * scale).max())

    def clipped(self, values: torch.Tensor) -> float | None:
        """Share of some values that the grid clamps."""
        return None if self.qparams is None else grids.clipped_share(values, *self.qparams)


def layer_records(
    graph: GraphModule, originals: tuple[Layer, ...], clipped: Mapping[str, float] = MappingProxyType({})
) -> tuple[LayerRecord, ...]:
    """A record of each layer of the float network that a graph was made from.

    Args:
        graph: the rewritten graph.
        originals: the layers before it was rewritten, batch normalisation folded.
        clipped: share of each quantized activation's values that lay beyond its range, by the name of its node.
    """
    nodes = {node.name: node for node in graph.graph.nodes}
    return tuple(
        _record(graph, [nodes[name] for name in (*layer.factors, layer.node)], layer, clipped) for layer in originals
    )


def quantized_layers(graph: GraphModule) -> tuple[Layer, ...]:
    """The layers of a traced network that may be quantized already, with the weights that their codes mean."""
    found = []
    for node in graph.graph.nodes:
        if (kind := LAYER_KINDS.get(node.target)) is None:
            continue
        weight, bias = arguments(node)[1], bias_of(node)
        if not reads_attribute(weight) and weight.target not in _DEQUANTIZED:
            continue
        stored = weight if reads_attribute(weight) else arguments(weight)[0]
        kept = bias if bias is None or reads_attribute(bias) else arguments(bias)[0]
        found.append(
            Layer(
                name=str(stored.target).removesuffix(".weight"),
                kind=kind,
                node=node.name,
                weight=_stored(graph, weight).values,
                bias=None if kept is None else attribute(graph, kept),
            )
        )
    return tuple(found)


def _record(graph: GraphModule, chain: list[Node], layer: Layer, clipped: Mapping[str, float]) -> LayerRecord:
    """Record of a layer and the chain of layers that it became, mostly of itself alone."""
    first, last = chain[0], chain[-1]
    parts, bias = [_stored(graph, arguments(node)[1]) for node in chain], bias_of(last)
    values = product([part.values for part in parts])
    alone = last is first
    activation_format, activation_range, source = _activation(graph, *arguments(first)[:2])
    return LayerRecord(
        name=layer.name,
        kind=layer.kind,
        weights=parts[0].format,
        activations=activation_format,
        parameters=layer.weight.numel() + (0 if layer.bias is None else layer.bias.numel()),
        stored_bits=sum(part.bits for part in parts) + (0 if bias is None else _bias_bits(graph, bias)),
        sqnr_db=None if torch.equal(values, layer.weight) else grids.sqnr_db(layer.weight, values),
        weight_range=parts[0].ends if alone else None,
        weight_clipped=parts[0].clipped(layer.weight) if alone else None,
        activation_range=activation_range,
        activation_clipped=clipped.get(source),
        became="" if alone else " - ".join(_described(part.values) for part in parts),
        reason=f"nothing puts the weights of a {layer.kind} on a grid" if layer.kind in FLOAT_KINDS.values() else "",
    )


def _described(weight: torch.Tensor) -> str:
    """A layer of a chain: its kernel, and from how many channels to how many."""
    outputs, inputs, *kernel = weight.shape
    size = "x".join(map(str, kernel)) + " " if kernel else ""
    return f"{size}{inputs} to {outputs}" if max(kernel, default=1) == 1 else f"{size}on each of {outputs}"


def _stored(graph: GraphModule, parameter: Node) -> _Stored:
    """How a parameter is stored."""
    if parameter.target == quantized.dequantize_per_channel.default:
        read_codes, read_scale, read_zero_point, _, lo, hi, _ = arguments(parameter)
        if read_zero_point.target == aten.to.dtype:  # files keep them in 8 bits
            read_zero_point = arguments(read_zero_point)[0]
        scale, zero_point = attribute(graph, read_scale), attribute(graph, read_zero_point)
        grid = _grid(lo, hi, per_channel=True)
    elif parameter.target == quantized.dequantize_per_tensor.default:
        read_codes, scale, zero_point, lo, hi, _ = arguments(parameter)
        scale, zero_point = torch.tensor(scale), torch.tensor(zero_point)
        grid = _grid(lo, hi, per_channel=False)
    else:
        stored = attribute(graph, arguments(parameter)[0] if parameter.target == aten.to.dtype else parameter)
        return _Stored(values=stored.float(), format=_name(stored.dtype), bits=_bits(stored))
    codes = attribute(graph, read_codes)
    return _Stored(
        values=grids.dequantize(codes, scale, zero_point),
        format=str(grid),
        bits=grids.stored_bits(codes.shape, grid),
        qparams=(scale, zero_point, grid),
    )


def _bias_bits(graph: GraphModule, bias: Node) -> int:
    """Bits of a bias: of its codes, whose scale is that of the products, or of its float values."""
    return _bits(attribute(graph, bias if bias.op == "get_attr" else arguments(bias)[0]))


def _bits(values: torch.Tensor) -> int:
    return values.numel() * values.dtype.itemsize * 8


def _activation(graph: GraphModule, read: Node, weight: Node) -> tuple[str, tuple[float, float] | None, str]:
    """Input of a layer: a grid or the type in which it computes, its range, and the name of the node it is from."""
    if read.target == quantized.dequantize_per_tensor.default:
        codes, scale, zero_point, lo, hi, _ = arguments(read)
        source = arguments(codes)[0]
        ends = (lo - zero_point) * scale, (hi - zero_point) * scale
        return str(_grid(lo, hi, per_channel=False)), ends, source.name
    if read.target == quantized.dequantize_per_channel.default:  # NNCF before depthwise convolutions
        _, _, _, _, lo, hi, _ = arguments(read)
        return str(_grid(lo, hi, per_channel=True)), None, ""
    if read.target == quantized.dequantize_per_tensor.tensor:
        _, _, _, lo, hi, _ = arguments(read)
        return f"{_grid(lo, hi, per_channel=False)} at run time", None, ""
    return (_name(attribute(graph, weight).dtype) if weight.op == "get_attr" else "float32"), None, ""


def _grid(lo: int, hi: int, *, per_channel: bool) -> Grid:
    bits, symmetric = (hi - lo).bit_length(), lo == -hi
    levels = hi - lo + 1 if symmetric and hi - lo + 2 < 1 << bits else 0
    return Grid(bits=bits, signed=lo < 0, symmetric=symmetric, per_channel=per_channel, levels=levels)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
