"""Factors of channels moved through a network that computes the same, so that one scale suits all channels of a tensor.

If channel i of a tensor has the factor 1 / s_i, the layers that read it make up for that with weights s_i times as
large. Rectifiers, pooling, and products with a gate let factors through; a sum does where all that is added has the
same ones, so that the layers along residual connections share them; what is concatenated keeps its own. A layer that
yields the tensor takes them into its own weights and bias, which costs nothing. Hard-swish and SiLU do not let them
through, but their gates do: with u = x / s,

    x g(x) / s = u g(s u),

where s u is a depthwise 1x1 convolution, which engines compute on codes. After any other function the factors are a
multiplication, which costs nothing where an engine computes it at the end of the layer before.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from bitsweep.graphs.im2col import groups_of
from bitsweep.graphs.ops import LAYER_KINDS, arguments, aten, attribute, bias_of, ensure_bias, is_layer, set_attribute
from bitsweep.quantization.rewrites.equalization import EQUIVARIANT, by_input_channel, from_input_channels

#: Functions x g(x), each with its gate g as slope and offset before a function from 0 to 1.
GATED = {aten.hardswish.default, aten.silu.default}
#: Factors of channels stay within this of the largest, so that dead ones do not become infinite.
SMALLEST_FACTOR = 1e-8
#: Share of what its parameters let expect that a channel reaches at least, seen or not.
RARE = 0.05
_RESHAPES = {aten.flatten.using_ints, aten.view.default, aten.reshape.default}


@dataclass(frozen=True, kw_only=True)
class ScalingGroup:
    """A tensor whose channels can be scaled, and what comes of that.

    Attributes:
        starts: yield the tensor, several where sums join them: layers, or one of anything else, whose output is then
            multiplied.
        carriers: which of the factors the output of a node has.
        gated: those of these nodes that are functions with a gate.
        readers: the layers that make up for the factors.
        channels: number of factors.
    """

    starts: tuple[Node, ...]
    carriers: Mapping[Node, slice]
    gated: tuple[Node, ...]
    readers: tuple[Node, ...]
    channels: int

    @property
    def start(self) -> Node:
        """The first that yields the tensor."""
        return self.starts[0]

    @property
    def starts_with_layer(self) -> bool:
        """Whether layers take the factors into their weights."""
        return is_layer(self.start)


def layer_groups(graph: GraphModule) -> list[ScalingGroup]:
    """The groups that start with layers, in order."""
    found, seen = list[ScalingGroup](), set[Node]()
    for node in graph.graph.nodes:
        if is_layer(node) and node not in seen and (group := group_of(graph, node)) is not None:
            found.append(group)
            seen.update(group.starts)
    return found


def group_of(graph: GraphModule, start: Node) -> ScalingGroup | None:
    """What scaling the output of a node comes to; None where something that reads it does not make up for it."""
    if not (count := _channels(start)):
        return None
    spans = {start: (0, count)}  # of each carrier, its first factor, counted from that of the start, and how many
    starts, gated, readers, waiting = list[Node](), list[Node](), list[Node](), [start]
    while waiting:
        node = waiting.pop()
        first, count = spans[node]
        if node is start or is_layer(node):
            if is_layer(node) and not (_owns_parameters(node) and _channels(node) == count):
                return None
            starts.append(node)
            sources = dict[Node, tuple[int, int]]()
        else:
            sources = dict(_sources(node, first, count))
            if not sources:
                return None
        following = dict[Node, tuple[int, int]]()
        for user in node.users:
            if is_layer(user) and arguments(user)[0] is node and _makes_up(graph, user, count):
                readers.append(user)
            elif user.target in GATED or _lets_through(node, user, count):
                left, right = _added_channels(node, user)
                following[user] = first - left, count + left + right
            else:
                return None
        for other, span in (sources | following).items():
            if other not in spans:
                waiting.append(other)
            if spans.setdefault(other, span) != span:
                return None
        gated += [user for user in following if user.target in GATED]
    products = [node for node in spans if node.target == aten.mul.Tensor and node is not start]
    if not readers or any(all(factor in spans for factor in node.args[:2]) for node in products):
        return None
    if ((gated or not is_layer(start)) and len(starts) > 1) or any(node.meta["val"].ndim != 4 for node in gated):
        return None
    lowest = min(first for first, _ in spans.values())
    carriers = {node: slice(first - lowest, first - lowest + count) for node, (first, count) in spans.items()}
    channels = max(span.stop for span in carriers.values())
    return ScalingGroup(
        starts=tuple(starts), carriers=carriers, gated=tuple(gated), readers=tuple(readers), channels=channels
    )


def _sources(node: Node, first: int, count: int) -> Iterator[tuple[Node, tuple[int, int]]]:
    """What a node has its factors from, with their span; nothing where they cannot come from anywhere.

    Args:
        first, count: the span of the node's own.
    """
    for read in node.all_input_nodes:
        left, right = _added_channels(read, node)
        own, channels = count - left - right, _channels(read)
        # A channel may have become several, but not the other way round.
        if own > 0 and channels and channels % own == 0 and (node.target in GATED or _lets_through(read, node, own)):
            yield read, (first + left, own)


def is_depthwise(graph: GraphModule, layer: Node) -> bool:
    """Whether each output channel of a layer reads one input channel, so that factors are lost in its own scales."""
    return groups_of(layer) > 1 and attribute(graph, arguments(layer)[1]).shape[1] == 1


def reader_weights(graph: GraphModule, group: ScalingGroup) -> Tensor | None:
    """Largest weight that each channel meets in layers whose scales channels share, [C]; None if there are none."""
    dense = [reader for reader in group.readers if not is_depthwise(graph, reader)]
    largest = torch.zeros(group.channels)
    for reader in dense:
        span = group.carriers[arguments(reader)[0]]
        columns = by_input_channel(attribute(graph, arguments(reader)[1]), reader, span.stop - span.start)
        largest[span] = torch.maximum(largest[span], columns.flatten(1).abs().amax(1))
    return largest if dense else None


def expected_reach(graph: GraphModule, group: ScalingGroup, reach_C: Tensor) -> Tensor:
    """Largest magnitudes of channels, where those that few images reach count as parameters let expect.

    With the largest parameter p_i of a channel and the median m of r_i / p_i, r_i is at least a twentieth of m p_i.
    """
    expected_C = reach_C.clone()
    for start in group.starts if group.starts_with_layer else ():
        span = group.carriers[start]
        largest = attribute(graph, arguments(start)[1]).flatten(1).abs().amax(1)
        if (bias := bias_of(start)) is not None:
            largest = torch.maximum(largest, attribute(graph, bias).abs())
        live = (reach_C[span] > 0) & (largest > 0)
        if live.any():
            least = RARE * (reach_C[span][live] / largest[live]).median() * largest
            expected_C[span] = torch.maximum(expected_C[span], least)
    return expected_C


def even_factors(reach_C: Tensor, weights_C: Tensor | None) -> Tensor:
    """Factors s that even out the channels of a tensor, float32 [C]; their geometric mean is 1.

    Where only depthwise layers read it, s_i is the largest magnitude r_i, so that all channels reach equally far. Where
    other layers do, whose weights w_i become s_i times as large, s_i = sqrt(r_i / w_i): what the activations lose in
    range is shared with the weights. Channels that are 0, or that nobody reads, are left alone.

    Args:
        reach_C: largest magnitude of each channel.
        weights_C: largest weight that each channel meets, see ``reader_weights``.
    """
    reach = reach_C.double()
    factor = reach if weights_C is None else (reach / weights_C.double().clamp(min=1e-30)).sqrt()
    live = (reach > 0) & torch.isfinite(factor) & (factor > 0)
    if weights_C is not None:
        live &= weights_C > 0
    if not live.any():
        return torch.ones_like(reach_C)
    factor = torch.where(live, factor, factor[live].median())
    factor = torch.maximum(factor, factor.max() * SMALLEST_FACTOR)
    return (factor / factor.log().mean().exp()).float()


def scale_channels(graph: GraphModule, group: ScalingGroup, factor_C: Tensor) -> None:
    """Divide, in place, the channels of a group by their factors, and let its readers make up for it."""
    for reader in group.readers:
        multiplied_C = factor_C[group.carriers[arguments(reader)[0]]]
        path = arguments(reader)[1].target
        weight = attribute(graph, arguments(reader)[1])
        columns = by_input_channel(weight, reader, len(multiplied_C))
        set_attribute(graph, path, from_input_channels(columns * multiplied_C.view(-1, 1, 1), weight, reader))
    for start in group.starts:
        divided_C = factor_C[group.carriers[start]]
        if not is_layer(start):
            _multiply_after(graph, start, 1 / divided_C)
            continue
        weight, bias = arguments(start)[1], bias_of(start) or ensure_bias(graph, start)
        rows = attribute(graph, weight)
        set_attribute(graph, str(weight.target), rows / divided_C.view(-1, *[1] * (rows.ndim - 1)))
        set_attribute(graph, str(bias.target), attribute(graph, bias) / divided_C)
    for function in group.gated:
        _write_gate(graph, function, factor_C)
    graph.recompile()


def _multiply_after(graph: GraphModule, node: Node, factor_C: Tensor) -> None:
    path = f"{node.name}_unit"
    set_attribute(graph, path, factor_C.view(1, -1, *[1] * (node.meta["val"].ndim - 2)))
    with graph.graph.inserting_after(node):
        read = graph.graph.get_attr(path)
    with graph.graph.inserting_after(read):
        product = graph.graph.call_function(aten.mul.Tensor, (node, read))
    product.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(product, delete_user_cb=lambda user: user is not product)


def _write_gate(graph: GraphModule, function: Node, factor_C: Tensor) -> None:
    """Write u g(s u) in the place of x g(x) / s."""
    (u,) = function.args
    assert isinstance(u, Node)
    hard = function.target == aten.hardswish.default
    slope, offset = (1 / 6, 0.5) if hard else (1.0, 0.0)
    path, channels = f"{function.name}_gate", len(factor_C)
    graph.add_module(path, torch.nn.Module())
    with graph.graph.inserting_before(function):
        parameters = []
        for name, value in (
            ("weight", (slope * factor_C).view(-1, 1, 1, 1)),
            ("bias", torch.full((channels,), offset)),
        ):
            set_attribute(graph, f"{path}.{name}", value)
            parameters.append(graph.graph.get_attr(f"{path}.{name}"))
        geometry = ([1, 1], [0, 0], [1, 1], channels)
        gate = graph.graph.call_function(aten.conv2d.default, (u, *parameters, *geometry))
        bounded = (
            graph.graph.call_function(aten.hardtanh.default, (gate, 0.0, 1.0))
            if hard
            else graph.graph.call_function(aten.sigmoid.default, (gate,))
        )
        product = graph.graph.call_function(aten.mul.Tensor, (u, bounded))
    for node in (gate, bounded, product):
        node.meta["val"] = function.meta["val"]
    function.replace_all_uses_with(product)
    graph.graph.erase_node(function)


def _channels(node: Node) -> int:
    """Number of channels of [N, C, ...] that a node yields; 0 where it yields something else."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.ndim not in (2, 4) or not value.is_floating_point():
        return 0
    if LAYER_KINDS.get(node.target) == "linear" and value.ndim != 2:
        return 0
    return int(value.shape[1])


def _lets_through(read: Node, user: Node, channels: int) -> bool:
    """Whether what a node yields of [N, C, ...] has the factors of what it reads; channels may become several."""
    value, result = read.meta["val"], user.meta.get("val")
    if not isinstance(result, Tensor):
        return False
    if any(_added_channels(read, user)) and _channels(read) != channels:
        return False
    if user.target == aten.add.Tensor:
        added = [each.meta["val"] for each in user.args[:2] if isinstance(each, Node) and each.op != "get_attr"]
        return len(added) == 2 and all(_sizes(each) == _sizes(result) for each in added) and not user.kwargs
    if user.target == aten.cat.default:
        parts: list[Node] = list(arguments(user)[0])
        return (
            user.args[1:] in ((1,), (1 - value.ndim,)) and len(set(parts)) == len(parts) and all(map(_channels, parts))
        )
    if user.target == aten.slice.Tensor:
        return bool(arguments(user)[1] % value.ndim > 1)
    if user.target == aten.mul.Tensor:
        # The larger of two factors of a product keeps its shape.
        return _sizes(result) == _sizes(value) and all(isinstance(factor, Node) for factor in user.args[:2])
    if user.target == aten.mean.dim:
        dims: list[int] = list(arguments(user)[1])
        return all(dim % value.ndim > 1 for dim in dims)
    if user.target in _RESHAPES:
        return result.ndim in (2, 4) and _sizes(result)[0] % channels == 0
    if user.target == aten.pad.default:
        return user.args[3:] in ((), (None,), (0,)) and len(arguments(user)[1]) <= 2 * (value.ndim - 1)
    return user.target in EQUIVARIANT


def _added_channels(read: Node, user: Node) -> tuple[int, int]:
    """How many channels, of zeros or of others that it reads, a node puts before and behind those of one."""
    if user.target == aten.cat.default:
        parts: list[Node] = list(arguments(user)[0])
        place, widths = parts.index(read), [_channels(part) for part in parts]
        return sum(widths[:place]), sum(widths[place + 1 :])
    if user.target != aten.pad.default:
        return 0, 0
    sizes = [int(size) for size in arguments(user)[1]]
    return (sizes[-2], sizes[-1]) if len(sizes) == 2 * (user.meta["val"].ndim - 1) else (0, 0)


def _sizes(value: Tensor) -> list[int]:
    """Shape of one image's part."""
    return [int(size) for size in value.shape[1:]]


def _makes_up(graph: GraphModule, reader: Node, channels: int) -> bool:
    """Whether channel i is a block of consecutive inputs of a layer, of which nobody shares the parameters."""
    weight = attribute(graph, arguments(reader)[1])
    inputs, groups = weight.shape[1] * groups_of(reader), groups_of(reader)
    return _owns_parameters(reader) and inputs % channels == 0 and channels % groups == 0


def _owns_parameters(layer: Node) -> bool:
    return all(len(each.users) == 1 for each in layer.args[1:3] if isinstance(each, Node))
