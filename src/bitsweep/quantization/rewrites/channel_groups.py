"""Which tensors of a network can have the factor 1 / s_i in channel i, while the layers that read them make up for it.

Rectifiers, pooling, and products with a gate let factors through; a sum does where all that is added has the same ones,
so that the layers along residual connections share them; what is concatenated keeps its own, and so do parts that are
taken of the channels. What comes of it is in `channel_scaling.py`.
"""

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.fx import GraphModule, Node

from bitsweep.graphs.im2col import groups_of
from bitsweep.graphs.ops import (
    LAYER_KINDS,
    arguments,
    aten,
    attribute,
    ensure_bias,
    is_layer,
    reads_attribute,
    with_defaults,
)
from bitsweep.quantization.rewrites.equalization import EQUIVARIANT

#: Functions x g(x), each with its gate g as slope and offset before a function from 0 to 1.
GATED = {aten.hardswish.default, aten.silu.default}
_RESHAPES = {aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.pixel_unshuffle.default}
#: What takes a tensor apart; its parts are then taken one by one.
_PARTED = {aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default}


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
        reach_C: how far each channel reaches in what the readers read, 0 for those that have no factor; None where the
            tensors tell.
    """

    starts: tuple[Node, ...]
    carriers: Mapping[Node, slice]
    gated: tuple[Node, ...]
    readers: tuple[Node, ...]
    channels: int
    reach_C: Tensor | None = None

    @property
    def start(self) -> Node:
        """The first that yields the tensor."""
        return self.starts[0]

    @property
    def starts_with_layer(self) -> bool:
        """Whether layers, or a normalisation, take the factors into their parameters."""
        return is_layer(self.start) or self.start.target == aten.layer_norm.default or is_affine(self.start)

    @property
    def names(self) -> frozenset[str]:
        """Names of the nodes, and paths of the weights, whose values change."""
        layers = (node for node in (*self.starts, *self.readers) if is_layer(node))
        return frozenset([node.name for node in self.carriers] + [str(arguments(node)[1].target) for node in layers])

    def within(self, graph: GraphModule) -> "ScalingGroup":
        """The same group in a copy of its graph, or in one that was rewritten elsewhere."""
        own = {node.name: node for node in graph.graph.nodes}
        starts, gated, readers = (
            tuple(own[node.name] for node in nodes) for nodes in (self.starts, self.gated, self.readers)
        )
        carriers = {own[node.name]: span for node, span in self.carriers.items()}
        return replace(self, starts=starts, carriers=carriers, gated=gated, readers=readers)


def parameters_of_start(graph: GraphModule, start: Node) -> tuple[Node, Node | None]:
    """Weight and bias of a layer, which gets a bias where it has none, or of a normalisation."""
    if is_affine(start):
        product, offset = arguments(start)[:2]
        return arguments(product)[1], offset
    if start.target == aten.layer_norm.default:
        weight, bias = (*arguments(start)[2:4], None)[:2]
        return weight, bias
    return arguments(start)[1], ensure_bias(graph, start)


def is_affine(node: Node) -> bool:
    """Whether a node adds to a product, channel by channel, as a normalisation does that no layer could take in."""
    product = node.args[0] if node.target == aten.add.Tensor and len(node.args) == 2 and not node.kwargs else None
    if not isinstance(product, Node) or product.target != aten.mul.Tensor or len(product.users) > 1:
        return False
    return all(_is_parameter_of_channels(each) for each in (product, node)) and owns_parameters(node)


def _is_affine_product(node: Node) -> bool:
    return any(is_affine(user) and user.args[0] is node for user in node.users)


def _is_parameter_of_channels(node: Node) -> bool:
    """Whether the second argument of a node is a parameter [1, C, 1, 1] for [N, C, H, W], or [1, C] for [N, C]."""
    value, parameter, graph = node.meta["val"], node.args[1], node.graph.owning_module
    if not isinstance(parameter, Node) or not reads_attribute(parameter) or len(parameter.users) > 1 or graph is None:
        return False
    return list(attribute(graph, parameter).shape) == [1, value.shape[1], *[1] * (value.ndim - 2)]


def layer_groups(graph: GraphModule) -> list[ScalingGroup]:
    """The groups that start with layers, or with normalisations that no layer could take in, in order."""
    found, seen = list[ScalingGroup](), set[Node]()
    for node in graph.graph.nodes:
        if (is_layer(node) or is_affine(node)) and node not in seen and (group := group_of(graph, node)) is not None:
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
        if node is start or is_layer(node) or is_affine(node):
            if is_layer(node) and not (owns_parameters(node) and _channels(node) == count):
                return None
            starts.append(node)
            sources = dict[Node, tuple[int, int]]()
        else:
            sources = dict(_sources(node, first, count))
            if not sources:
                return None
        following = dict[Node, tuple[int, int]]()
        for user in _users(node):
            if (is_layer(user) and arguments(user)[0] is node and makes_up(graph, user, count)) or _is_affine_product(
                user
            ):
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
    if ((gated or not (is_layer(start) or is_affine(start))) and len(starts) > 1) or any(
        node.meta["val"].ndim != 4 for node in gated
    ):
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
    for read in _read(node):
        left, right = _added_channels(read, node)
        own, channels = count - left - right, _channels(read)
        # A channel may have become several, but not the other way round.
        if own > 0 and channels and channels % own == 0 and (node.target in GATED or _lets_through(read, node, own)):
            yield read, (first + left, own)


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
        return bool(with_defaults(user)[1] % value.ndim > 1) or _sliced_channels(read, user) is not None
    if _is_part(user):
        return bool(with_defaults(arguments(user)[0])[2] % value.ndim == 1)
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
    """How many channels, of zeros or of others that it reads, a node puts before and behind those of one.

    Where it takes some of the channels alone, it puts less than none.
    """
    if user.target == aten.cat.default:
        parts: list[Node] = list(arguments(user)[0])
        place, widths = parts.index(read), [_channels(part) for part in parts]
        return sum(widths[:place]), sum(widths[place + 1 :])
    if user.target == aten.slice.Tensor and (channels := _sliced_channels(read, user)) is not None:
        return _taken(read, user, channels.start)
    if _is_part(user):
        parted, place = arguments(user)
        return _taken(read, user, sum(int(part.shape[1]) for part in parted.meta["val"][:place]))
    if user.target != aten.pad.default:
        return 0, 0
    sizes = [int(size) for size in arguments(user)[1]]
    return (sizes[-2], sizes[-1]) if len(sizes) == 2 * (user.meta["val"].ndim - 1) else (0, 0)


def _taken(read: Node, part: Node, first: int) -> tuple[int, int]:
    return -first, first + int(part.meta["val"].shape[1]) - int(read.meta["val"].shape[1])


def _sliced_channels(read: Node, user: Node) -> range | None:
    """Which channels, one behind the other, a slice takes; None where it takes others, or something else."""
    _, dim, *ends = with_defaults(user)
    value = read.meta["val"]
    if dim % value.ndim != 1 or any(isinstance(end, Node) for end in ends):
        return None
    channels = range(int(value.shape[1]))[slice(*ends)]
    return channels if channels.step == 1 else None


def _is_part(node: Node) -> bool:
    """Whether a node is a part of a tensor that was taken apart."""
    return node.target == operator.getitem and arguments(node)[0].target in _PARTED


def _users(node: Node) -> Iterator[Node]:
    """What reads a node, or a part of it."""
    for user in node.users:
        yield from user.users if user.target in _PARTED else (user,)


def _read(node: Node) -> Sequence[Node]:
    """What a node reads, or is a part of."""
    whole: Node = arguments(node)[0] if _is_part(node) else node
    return whole.all_input_nodes


def _sizes(value: Tensor) -> list[int]:
    """Shape of one image's part."""
    return [int(size) for size in value.shape[1:]]


def makes_up(graph: GraphModule, reader: Node, channels: int) -> bool:
    """Whether channel i is a block of consecutive inputs of a layer, of which nobody shares the parameters."""
    weight = attribute(graph, arguments(reader)[1])
    inputs, groups = weight.shape[1] * groups_of(reader), groups_of(reader)
    return owns_parameters(reader) and inputs % channels == 0 and channels % groups == 0


def owns_parameters(layer: Node) -> bool:
    """Whether no other node reads the parameters of a layer or of a normalisation."""
    first = 2 if layer.target == aten.layer_norm.default else 1
    return all(len(each.users) == 1 for each in layer.args[first : first + 2] if isinstance(each, Node))
