"""Channels that are always multiples of one another read once, and those that are always 0 not at all.

What differs between networks that compute the same may be weights of channels that cancel each other: if x_j = c x_i
always, a layer that reads both may take w_i + c w_j from channel i and nothing from channel j. Where w_i and c w_j were
large and nearly opposite, their sum is a small part of them, and it would be lost in the steps of their scale.

Which channels are the same follows from the weights: the rows of a layer are multiples of one another, and so is
what functions, sums, products and depthwise layers make of such channels. A rectifier yields nothing but 0 where the
layer before it stays below 0 for all that is within twice the range of what it reads.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from bitsweep.graphs.im2col import groups_of
from bitsweep.graphs.ops import (
    ELEMENTWISE,
    LAYER_KINDS,
    arguments,
    aten,
    attribute,
    bias_of,
    is_layer,
    set_attribute,
    values_of_an_image,
)
from bitsweep.quantization.rewrites.channel_groups import owns_parameters
from bitsweep.quantization.rewrites.equalization import EQUIVARIANT, by_input_channel, from_input_channels

#: By how much entries of rows may differ, in units of the largest weight, or of themselves if they are larger.
TOLERANCE = 1e-6
_RECTIFIERS = {aten.relu.default, aten.relu6.default}
_PAIRS = {aten.add.Tensor, aten.mul.Tensor}
_RESHAPES = {aten.flatten.using_ints, aten.view.default, aten.reshape.default}
#: Let multiples through, beside those that let factors of channels through.
_MULTIPLES = (EQUIVARIANT - _RESHAPES - {aten.prelu.default, aten.mean.dim}) | {
    aten.contiguous.default,
    aten.clone.default,
}


@dataclass(frozen=True, kw_only=True)
class Channels:
    """The channels of a tensor: channel i is ``factor_C[i]``, maybe 0, times what ``class_C[i]`` stands for."""

    class_C: Tensor
    factor_C: Tensor
    axis: int

    def __len__(self) -> int:
        return len(self.class_C)


#: Ends of each channel that a node yields, [C], by its name.
Ranges = Mapping[str, tuple[Tensor, Tensor]]
#: By how much more than seen a layer may read.
SLACK = 2


@torch.no_grad()
def read_once(graph: GraphModule, ranges: Ranges = MappingProxyType({})) -> dict[Node, list[tuple[int, int]]]:
    """Let, in place, layers not read channels that are multiples of others, and these others instead.

    Args:
        ranges: of what layers read, as far as it is known.

    Returns:
        By layer, the channels that it does not read any more, each behind the one that it reads instead, or behind
        itself where it is always 0.
    """
    known, merged = dict[Node, Channels](), dict[Node, list[tuple[int, int]]]()
    for node in graph.graph.nodes:
        source = known.get(arguments(node)[0]) if is_layer(node) else None
        if source is not None and (pairs := _merge(graph, node, source)):
            merged[node] = pairs
        if (found := _channels(graph, node, known)) is not None:
            silent_C = _silent(graph, node, ranges)
            known[node] = found if silent_C is None else replace(found, factor_C=found.factor_C * ~silent_C)
    return merged


def same_rows(rows_CM: Tensor, class_C: Tensor) -> Tensor:
    """Numbers of classes of equal rows, int64 [C]; only rows of one class before can be in one.

    Rows that are next to each other by their product with a fixed direction are compared.
    """
    direction = torch.randn(rows_CM.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    order = (rows_CM @ direction).argsort(stable=True)
    order = order[class_C[order].argsort(stable=True)]
    rows_CM, classes_C = rows_CM[order], class_C[order]
    unlike = rows_CM.diff(dim=0).abs() > TOLERANCE * rows_CM[1:].abs().clamp(min=1)
    differs = unlike.any(1) | (classes_C.diff() != 0)
    found_C = torch.zeros_like(class_C)
    found_C[order[1:]] = differs.long().cumsum(0)
    return found_C


def _merge(graph: GraphModule, layer: Node, source: Channels) -> list[tuple[int, int]]:
    """Let a layer read each class of channels once; see ``read_once``."""
    weight = attribute(graph, arguments(layer)[1])
    if groups_of(layer) > 1 or not owns_parameters(layer) or weight.shape[1] != len(source):
        return []
    columns = by_input_channel(weight, layer, len(source)).double()
    first, pairs = dict[int, int](), list[tuple[int, int]]()
    for channel, (each, factor) in enumerate(zip(source.class_C.tolist(), source.factor_C.tolist(), strict=True)):
        one = first.setdefault(each, channel) if factor else channel
        if (one != channel or not factor) and columns[channel].any():
            columns[one] += columns[channel] * (factor / source.factor_C[one] if factor else 0)
            columns[channel] = 0
            pairs.append((one, channel))
    if pairs:
        set_attribute(graph, str(arguments(layer)[1].target), from_input_channels(columns.float(), weight, layer))
    return pairs


# --------------------------------------------------------------------------- what is the same


def _channels(graph: GraphModule, node: Node, known: dict[Node, Channels]) -> Channels | None:
    """What is known of the channels that a node yields."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.is_floating_point() or node.op != "call_function":
        return None
    if is_layer(node):
        return _of_layer(graph, node, known.get(arguments(node)[0]))
    read = [known[each] for each in node.all_input_nodes if each in known]
    if len(read) != len([each for each in node.all_input_nodes if each.op != "get_attr"]) or not read:
        return None
    (source, *others), weights = read, [each for each in node.all_input_nodes if each.op == "get_attr"]
    before = node.all_input_nodes[0].meta["val"]
    if node.target == aten.cat.default:
        return _joined(node, [known[part] for part in arguments(node)[0]], value)
    if node.target in _PAIRS and not weights:
        return _of_pair(node, *(known.get(each) for each in node.args[:2] if isinstance(each, Node)))
    if others:
        return None
    if node.target == aten.layer_norm.default and source.axis == value.ndim - 1 and len(weights) == 2:
        return _with_rows(source, source.factor_C, *(attribute(graph, each) for each in weights))
    if weights:
        return None
    if node.target == aten.mean.dim:
        return _averaged(node, source, before.ndim, value.ndim)
    if node.target in _MULTIPLES:
        return source if value.ndim == before.ndim and value.shape[source.axis] == len(source) else None
    if node.target in ELEMENTWISE:
        return _with_rows(source, source.factor_C)
    if node.target == aten.pad.default and len(arguments(node)[1]) <= 2 * (value.ndim - 1 - source.axis):
        return source
    if node.target == aten.permute.default:
        return replace(source, axis=[dim % value.ndim for dim in arguments(node)[1]].index(source.axis))
    if node.target == aten.transpose.int:
        one, other = (dim % value.ndim for dim in arguments(node)[1:3])
        return replace(source, axis={one: other, other: one}.get(source.axis, source.axis))
    return _reshaped(node, source, value) if node.target in _RESHAPES else None


def _of_layer(graph: GraphModule, layer: Node, source: Channels | None) -> Channels | None:
    weight, bias = attribute(graph, arguments(layer)[1]).double(), bias_of(layer)
    count, groups = len(weight), groups_of(layer)
    axis = layer.meta["val"].ndim - 1 if LAYER_KINDS[layer.target] == "linear" else 1
    bias_C = torch.zeros(count).double() if bias is None else attribute(graph, bias).double()
    start = Channels(class_C=torch.zeros(count, dtype=torch.long), factor_C=torch.ones(count).double(), axis=axis)
    rows = weight.flatten(1)
    if groups > 1:
        if weight.shape[1] > 1 or groups != count or source is None or len(source) != count:
            return None
        start, rows = replace(start, class_C=source.class_C), rows * source.factor_C[:, None]
    largest_C = rows.abs().amax(1)
    factor_C = torch.where(largest_C > 0, largest_C, bias_C.abs())
    unit_C = torch.where(factor_C > 0, factor_C, 1)
    return replace(_with_rows(start, rows / unit_C[:, None], bias_C / unit_C), factor_C=factor_C)


def _silent(graph: GraphModule, rectifier: Node, ranges: Ranges) -> Tensor | None:
    """Which channels of a rectifier behind a layer are always 0, [C]; None where it is none, or nothing is known."""
    clamps = rectifier.target == aten.hardtanh.default and rectifier.args[1:2] in ((0,), (0.0,))
    layer = arguments(rectifier)[0] if clamps or rectifier.target in _RECTIFIERS else None
    if layer is None or not is_layer(layer) or (bias := bias_of(layer)) is None:
        return None
    read, weight = arguments(layer)[:2]
    weight_OIK, groups = attribute(graph, weight).double(), groups_of(layer)
    weight_OIK = weight_OIK.reshape(*weight_OIK.shape[:2], -1)
    if read.name not in ranges or len(ranges[read.name][0]) != weight_OIK.shape[1] * groups:
        return None
    low_GI, high_GI = (SLACK * end_C.double().view(groups, -1) for end_C in ranges[read.name])
    up_GOI, down_GOI = (each.relu().sum(2).view(groups, -1, weight_OIK.shape[1]) for each in (weight_OIK, -weight_OIK))
    most_GO = (up_GOI @ high_GI.clamp(min=0)[..., None] - down_GOI @ low_GI.clamp(max=0)[..., None])[..., 0]
    silent_C: Tensor = most_GO.flatten() + attribute(graph, bias) < 0
    return silent_C


def _with_rows(source: Channels, *rows: Tensor) -> Channels:
    """Channels that are the same where those of the source are, and rows of numbers [C] or [C, M]."""
    rows_CM = torch.cat([each.double().view(len(source), -1) for each in rows], 1)
    return replace(source, class_C=same_rows(rows_CM, source.class_C), factor_C=torch.ones(len(source)).double())


def _of_pair(node: Node, one: Channels | None = None, other: Channels | None = None) -> Channels | None:
    """Of a sum, or of a product, of two tensors."""
    if one is None or other is None or len(one) != len(other) or one.axis != other.axis or node.kwargs:
        return None
    both = replace(one, class_C=one.class_C * (int(other.class_C.max()) + 1) + other.class_C)
    if node.target == aten.mul.Tensor:
        return replace(both, factor_C=one.factor_C * other.factor_C)
    factor_C = torch.where(one.factor_C > 0, one.factor_C, other.factor_C)
    unit_C = torch.where(factor_C > 0, factor_C, 1)
    return replace(_with_rows(both, one.factor_C / unit_C, other.factor_C / unit_C), factor_C=factor_C)


def _averaged(node: Node, source: Channels, dims: int, left: int) -> Channels | None:
    """Of means over some of the dimensions, which may be left or not."""
    over = {dim % dims for dim in arguments(node)[1]}
    if source.axis in over:
        return None
    return replace(source, axis=source.axis - (sum(dim < source.axis for dim in over) if left < dims else 0))


def _joined(node: Node, parts: Iterable[Channels], value: Tensor) -> Channels | None:
    """Of tensors one behind the other."""
    parts = list(parts)
    axis = (*arguments(node)[1:2], 0)[0] % value.ndim
    if any(part.axis != axis for part in parts):
        return None
    starts = torch.tensor([0, *(int(part.class_C.max()) + 1 for part in parts)]).cumsum(0).tolist()
    class_C = torch.cat([part.class_C + start for part, start in zip(parts, starts, strict=False)])
    return Channels(class_C=class_C, factor_C=torch.cat([part.factor_C for part in parts]), axis=axis)


def _reshaped(node: Node, source: Channels, value: Tensor) -> Channels | None:
    """Where each channel of [N, C, ...] becomes as many consecutive ones of [N, M] as it has places."""
    before: Any = node.all_input_nodes[0].meta["val"]
    whole = before.ndim in (2, 4) and value.ndim == 2 and values_of_an_image(value) == values_of_an_image(before)
    if source.axis != 1 or not whole or value.shape[1] != values_of_an_image(before):
        return None
    places = values_of_an_image(before) // len(source)
    class_C = source.class_C[:, None] * places + torch.arange(places)
    return Channels(class_C=class_C.flatten(), factor_C=source.factor_C.repeat_interleave(places), axis=1)
