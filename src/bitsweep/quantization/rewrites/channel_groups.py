"""Which tensors of a network can have the factor 1 / s_i in channel i, while the layers that read them make up for it.

Which channels have the same factors follows from what reads what, see `channel_relations.py`: the layers along
residual connections share them, and so do all that a shuffle brings together. What comes of it is in
`channel_scaling.py`.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
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
)
from bitsweep.quantization.rewrites.channel_relations import GATED, channels_of, relation

#: A node, one that reads it, and which channel of the first each of the second's has its factor from, or -1.
Relation = tuple[Node, Node, Tensor]


@dataclass(frozen=True, kw_only=True)
class ScalingGroup:
    """A tensor whose channels can be scaled, and what comes of that.

    Attributes:
        starts: yield the tensor, several where sums join them: layers, or one of anything else, whose output is then
            multiplied.
        carriers: numbers of the factors that the channels of a node's output have, int64.
        gated: those of these nodes that are functions with a gate.
        readers: the layers that make up for the factors.
        channels: number of factors.
        reach_C: how far each channel reaches in what the readers read, 0 for those that have no factor; None where the
            tensors tell.
    """

    starts: tuple[Node, ...]
    carriers: Mapping[Node, Tensor]
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
        carriers = {own[node.name]: number_C for node, number_C in self.carriers.items()}
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
    if not channels_of(start):
        return None
    starts, readers, relations = list[Node](), list[Node](), list[Relation]()
    found, waiting = {start: None}, [start]
    while waiting:
        node = waiting.pop()
        if node is start or is_layer(node) or is_affine(node):
            if is_layer(node) and not owns_parameters(node):
                return None
            starts.append(node)
            near = list[Relation]()
        elif not (
            near := [
                (read, node, own_C) for read in node.all_input_nodes if (own_C := relation(read, node)) is not None
            ]
        ):
            return None
        for user in node.users:
            if _is_affine_product(user) or (is_layer(user) and _makes_up_for(graph, user, node)):
                readers.append(user)
            elif (own_C := relation(node, user)) is not None:
                near.append((node, user, own_C))
            else:
                return None
        relations += near
        for other in (each for read, user, _ in near for each in (read, user) if each not in found):
            found[other] = None
            waiting.append(other)
    gated = [node for node in found if node.target in GATED and node is not start]
    products = [node for node in found if node.target == aten.mul.Tensor and node is not start]
    if not readers or any(all(factor in found for factor in node.args[:2]) for node in products):
        return None
    if ((gated or not (is_layer(start) or is_affine(start))) and len(starts) > 1) or any(
        node.meta["val"].ndim != 4 for node in gated
    ):
        return None
    carriers = _numbered(found, relations)
    channels = 1 + max(int(number_C.max()) for number_C in carriers.values())
    return ScalingGroup(
        starts=tuple(starts), carriers=carriers, gated=tuple(gated), readers=tuple(readers), channels=channels
    )


def _numbered(nodes: Iterable[Node], relations: Iterable[Relation]) -> dict[Node, Tensor]:
    """Numbers of the factors of each node's channels: the same for all that have to have the same."""
    counts = {node: channels_of(node) for node in nodes}
    firsts = dict(zip(counts, itertools.accumulate(counts.values(), initial=0), strict=False))
    pairs = list[Tensor]()
    for read, user, own_C in relations:
        (places,) = (own_C >= 0).nonzero(as_tuple=True)
        pairs.append(torch.stack([firsts[read] + own_C[places], firsts[user] + places]))
    one, other = torch.cat(pairs, 1) if pairs else torch.zeros(2, 0, dtype=torch.long)
    label_M = torch.arange(sum(counts.values()))
    while True:
        least = torch.minimum(label_M[one], label_M[other])
        less_M = label_M.scatter_reduce(0, one, least, "amin").scatter_reduce(0, other, least, "amin")
        less_M = less_M[less_M]
        if torch.equal(less_M, label_M):
            break
        label_M = less_M
    _, number_M = torch.unique(label_M, return_inverse=True)
    return dict(zip(counts, torch.split(number_M, list(counts.values())), strict=True))


def _makes_up_for(graph: GraphModule, reader: Node, node: Node) -> bool:
    dims = 2 if LAYER_KINDS[reader.target] == "linear" else 4
    reads = arguments(reader)[0] is node and node.meta["val"].ndim == dims
    return reads and makes_up(graph, reader, channels_of(node))


def makes_up(graph: GraphModule, reader: Node, inputs: int) -> bool:
    """Whether a layer has so many inputs, one for each channel, and nobody shares its parameters."""
    weight = attribute(graph, arguments(reader)[1])
    return owns_parameters(reader) and weight.shape[1] * groups_of(reader) == inputs


def owns_parameters(layer: Node) -> bool:
    """Whether no other node reads the parameters of a layer or of a normalisation."""
    first = 2 if layer.target == aten.layer_norm.default else 1
    return all(len(each.users) == 1 for each in layer.args[first : first + 2] if isinstance(each, Node))
