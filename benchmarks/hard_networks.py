"""Networks that compute what they did before, and are harder to quantize.

What pretrained networks with depthwise convolutions have by themselves can be made in any network: channels whose
ranges differ by a factor of a million, channels that never change, variances of a normalisation near 0. In float32
next to nothing is lost, so that whatever a quantized network loses afterwards is the quantization's.

Shape letters: O output and I input channels of a layer.
"""

import copy
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

Layer = nn.Conv2d | nn.Linear
#: Let a positive factor of a channel through.
EQUIVARIANT = {
    nn.ReLU, nn.Identity, nn.Dropout, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten,
    F.relu, torch.relu, torch.flatten, F.dropout, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d,
    "relu", "relu_", "flatten", "mean",
}  # fmt: skip
#: Add what they read.
ADDING = {operator.add, operator.iadd, torch.add, "add", "add_"}
#: Compute each channel from itself, whatever the function.
ELEMENTWISE = EQUIVARIANT | {
    nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.Sigmoid, F.relu6, F.hardswish, F.silu, torch.sigmoid,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Link:
    """Two layers of which the second alone reads the first, channel by channel.

    Attributes:
        norm: the normalisation right behind the first, if there is one.
    """

    first: Layer
    norm: nn.BatchNorm2d | None
    second: Layer

    @property
    def channels(self) -> int:
        """Output channels of the first."""
        return self.first.weight.shape[0]


@dataclass(frozen=True, kw_only=True)
class Stream:
    """What is added up channel by channel: by a residual network, say.

    Attributes:
        firsts: layers, or the normalisations behind them, that yield what is added.
        seconds: the layers that read it, or sums of it.
    """

    firsts: tuple[Layer | nn.BatchNorm2d, ...]
    seconds: tuple[Layer, ...]

    @property
    def channels(self) -> int:
        """Channels of the sums."""
        return len(self.firsts[0].weight)


def rescaled(network: nn.Module, *, span: float = 1e3, seed: int = 0) -> nn.Module:
    """Channels between two layers are s times as large, and the second layer multiplies them by 1 / s.

    s is drawn for each channel, evenly in its logarithm from 1 / span to span. A ReLU or a pooling may stand between,
    and the second layer may be depthwise.
    """
    hard = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    for link in links(hard, EQUIVARIANT):
        factor_O = span ** (2 * torch.rand(link.channels, generator=generator, dtype=torch.float64) - 1)
        if link.norm is not None:
            scale(link.norm.weight, factor_O)
            scale(link.norm.bias, factor_O)
        else:
            scale(link.first.weight, factor_O)
            scale(link.first.bias, factor_O)
        weight = link.second.weight
        if depthwise(link.second):
            scale(weight, 1 / factor_O)
        else:
            scale(weight, (1 / factor_O).repeat_interleave(weight.shape[1] // link.channels), dim=1)
    return hard


def with_constant_channels(network: nn.Module, *, count: int = 2, value: float = 50.0) -> nn.Module:
    """Channels that are always the same, as a bias without weights makes them, are added between two layers.

    There are twice ``count`` of them. The second layer reads each one with the weights of one of its channels, and the
    next with these weights negated, so that nothing comes of it. A depthwise layer between hands them on.

    Args:
        value: of the channels; the others are around 1.
    """
    hard = copy.deepcopy(network)
    following = {id(link.first): link for link in links(hard, ELEMENTWISE)}
    for link in list(following.values()):
        chain = [link]
        while depthwise(chain[-1].second) and id(chain[-1].second) in following:
            chain.append(following[id(chain[-1].second)])
        end = chain[-1].second
        if grouped(link.first) or grouped(end):
            continue
        inputs = end.weight.shape[1] // link.channels
        for each in chain:
            grow_outputs(each, 2 * count, value)
        grow_inputs(end, 2 * count, inputs)
    return hard


def with_tiny_variances(network: nn.Module, *, share: float = 0.25, variance: float = 1e-8, seed: int = 0) -> nn.Module:
    """Outputs of layers before a normalisation are so small in some channels that their running variance is almost 0.

    Args:
        share: of the channels.
    """
    hard = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    for first, norm in normalised(hard):
        assert norm.running_var is not None and norm.running_mean is not None
        chosen_O = torch.rand(len(norm.running_var), generator=generator) < share
        ratio_O = (variance + norm.eps) / (norm.running_var.double() + norm.eps)
        factor_O = torch.where(chosen_O, ratio_O.sqrt(), 1.0)
        for parameter in (first.weight, first.bias, norm.running_mean):
            scale(parameter, factor_O)
        norm.running_var[chosen_O] = variance
    return hard


def with_rescaled_sums(network: nn.Module, *, span: float = 1e2, seed: int = 0) -> nn.Module:
    """Channels of what layers add up are s times as large, and the layers that read the sums multiply by 1 / s.

    s is drawn as for ``rescaled``. All that one channel of a residual network adds up has the same.
    """
    hard = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    for stream in streams(hard):
        factor_O = span ** (2 * torch.rand(stream.channels, generator=generator, dtype=torch.float64) - 1)
        for first in stream.firsts:
            scale(first.weight, factor_O)
            scale(first.bias, factor_O)
        for second in stream.seconds:
            scale(second.weight, 1 / factor_O, dim=0 if depthwise(second) else 1)
    return hard


def with_offsets(network: nn.Module, *, size: float = 30.0, seed: int = 0) -> nn.Module:
    """Channels that no function follows have offsets, and the layers that read them, or sums of them, subtract these.

    An offset is drawn for each channel from a normal distribution. A layer whose padding would be read is no reader.

    Args:
        size: standard deviation of the offsets; the channels are around 1.
    """
    hard = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    graph = Tracer().trace(hard)
    for node in graph.nodes:
        norm = operation(hard, node)
        members = offset_by(hard, node) if isinstance(norm, nn.BatchNorm2d) else set()
        readers = {reader for each in members for reader in each.users} - members
        shared = any(used_twice(graph, each) for each in (node, *readers))
        if not members or shared or not all(takes_off(hard, reader) for reader in readers):
            continue
        offset_O = size * torch.randn(len(norm.bias), generator=generator, dtype=torch.float64)
        norm.bias.data += offset_O.float()
        for reader in readers:
            layer = operation(hard, reader)
            yielded_O = (layer.weight.data.double().flatten(2).sum(2) @ offset_O).float()
            following = operation(hard, only_reader(reader)) if only_reader(reader) is not None else None
            if layer.bias is not None:
                layer.bias.data -= yielded_O
            elif isinstance(following, nn.BatchNorm2d):
                following.running_mean += yielded_O
            else:
                layer.bias = nn.Parameter(-yielded_O)
    return hard


HARD = {
    "rescaled": rescaled,
    "constant": with_constant_channels,
    "variance": with_tiny_variances,
    "sums": with_rescaled_sums,
    "offsets": with_offsets,
}


# --------------------------------------------------------------------------- what reads what


class Tracer(fx.Tracer):
    """Sees layers of a network's own classes as layers, too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one operation."""
        return isinstance(m, Layer | nn.BatchNorm2d) or super().is_leaf_module(m, module_qualified_name)


def links(network: nn.Module, between: set[Any]) -> Iterator[Link]:
    """The pairs of layers of a network, in the order in which they run.

    Args:
        between: what may stand between two layers, behind the normalisation.
    """
    graph = Tracer().trace(network)
    for node in graph.nodes:
        first = operation(network, node)
        if not isinstance(first, Layer) or used_twice(graph, node):
            continue
        norm, reader = None, only_reader(node)
        if reader is not None and isinstance(found := operation(network, reader), nn.BatchNorm2d):
            norm, reader = found, only_reader(reader)
        while reader is not None and kind(network, reader) in between and reader.all_input_nodes[1:] == []:
            reader = only_reader(reader)
        second = operation(network, reader) if reader is not None else None
        if isinstance(second, Layer) and not used_twice(graph, reader) and channelwise(first, second):
            yield Link(first=first, norm=norm, second=second)


def streams(network: nn.Module) -> Iterator[Stream]:
    """The sums of a network that layers alone add to and read, and that let a positive factor of a channel through."""
    graph, seen = Tracer().trace(network), set[fx.Node]()
    for node in graph.nodes:
        if kind(network, node) not in ADDING or node in seen:
            continue
        members = joined(network, node)
        seen |= members
        yielding = [each for each in graph.nodes if each in members and yields(network, each)]
        reading = [each for each in graph.nodes if each not in members and not members.isdisjoint(each.all_input_nodes)]
        firsts = tuple(operation(network, each) for each in yielding)
        seconds = tuple(operation(network, each) for each in reading)
        between = {kind(network, each) for each in members.difference(yielding)}
        if (
            between <= EQUIVARIANT | ADDING
            and all(isinstance(second, Layer) and channelwise(firsts[0], second) for second in seconds)
            and len({len(first.weight) for first in firsts}) == 1
            and not any(used_twice(graph, each) for each in (*yielding, *reading))
        ):
            yield Stream(firsts=firsts, seconds=seconds)


def joined(network: nn.Module, node: fx.Node) -> set[fx.Node]:
    """A sum with all that has to have the same factors: what it adds up, and what is made of it without a layer."""
    members, found = set[fx.Node](), [node]
    while found:
        if (each := found.pop()) not in members:
            members.add(each)
            found += [] if yields(network, each) else each.all_input_nodes
            found += [user for user in each.users if not yields(network, user)]
    return members


def offset_by(network: nn.Module, node: fx.Node) -> set[fx.Node]:
    """A node with all sums that have its offsets; nothing where a sum has them twice."""
    members, found = {node}, [node]
    while found:
        for user in found.pop().users:
            if kind(network, user) in ADDING:
                if user in members or len({*user.all_input_nodes}) < 2:
                    return set()
                members.add(user)
                found.append(user)
    return members


def takes_off(network: nn.Module, reader: fx.Node) -> bool:
    """Whether a node is a convolution that sees no zeros at borders, and all channels."""
    layer = operation(network, reader)
    return isinstance(layer, nn.Conv2d) and not any(layer.padding) and layer.groups == 1


def yields(network: nn.Module, node: fx.Node) -> bool:
    """Whether the outputs of a node have a scale of their own: those of layers and normalisations."""
    return isinstance(operation(network, node), Layer | nn.BatchNorm2d)


def normalised(network: nn.Module) -> Iterator[tuple[Layer, nn.BatchNorm2d]]:
    """The layers that a normalisation alone reads, with that."""
    for node in Tracer().trace(network).nodes:
        first, reader = operation(network, node), only_reader(node)
        norm = operation(network, reader) if reader is not None else None
        if isinstance(first, Layer) and isinstance(norm, nn.BatchNorm2d):
            yield first, norm


def operation(network: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that a node calls."""
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def kind(network: nn.Module, node: fx.Node) -> Any:
    """What a node does: the class of its module, its function, or the name of its method."""
    return type(operation(network, node)) if node.op == "call_module" else node.target


def only_reader(node: fx.Node) -> fx.Node | None:
    """The node that reads another one, if there is only one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def used_twice(graph: fx.Graph, node: fx.Node) -> bool:
    """Whether the module of a node runs at several places."""
    return sum(other.op == "call_module" and other.target == node.target for other in graph.nodes) > 1


def channelwise(first: Layer | nn.BatchNorm2d, second: Layer) -> bool:
    """Whether channel i of the first layer is the i-th group of inputs of the second."""
    channels, inputs = first.weight.shape[0], second.weight.shape[1]
    return channels == second.weight.shape[0] if depthwise(second) else not grouped(second) and not inputs % channels


def grouped(layer: Layer) -> bool:
    """Whether a layer is a convolution in groups."""
    return isinstance(layer, nn.Conv2d) and layer.groups > 1


def depthwise(layer: Layer) -> bool:
    """Whether output channel i of a layer reads input channel i only."""
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels > 1


# --------------------------------------------------------------------------- parameters


@torch.no_grad()
def scale(parameter: Tensor | None, factor_C: Tensor, *, dim: int = 0) -> None:
    """Multiply the slices of a parameter along a dimension, in place and in float64."""
    if parameter is not None:
        shape = [-1 if i == dim else 1 for i in range(parameter.ndim)]
        parameter.copy_(parameter.double() * factor_C.reshape(shape))


@torch.no_grad()
def grow_outputs(link: Link, count: int, value: float) -> None:
    """Give the first layer of a link so many more output channels, each always ``value`` before what comes next.

    A depthwise layer passes on its input at the centre of its window: the value comes from the layer before.
    """
    first, added = link.first, link.first.weight.new_zeros(count, *link.first.weight.shape[1:])
    constant = value
    if depthwise(first):
        constant = 0.0
        added[..., added.shape[2] // 2, added.shape[3] // 2] = 1
        first.groups, first.in_channels = first.groups + count, first.in_channels + count
    widen(first, "weight", added)
    if first.bias is None and link.norm is None:
        first.bias = nn.Parameter(first.weight.new_zeros(first.weight.shape[0] - count))
    if first.bias is not None:
        widen(first, "bias", first.weight.new_full((count,), constant if link.norm is None else 0.0))
    if isinstance(first, nn.Conv2d):
        first.out_channels += count
    else:
        first.out_features += count
    if link.norm is not None:
        fills = {"weight": 1.0, "bias": constant, "running_mean": 0.0, "running_var": 1 - link.norm.eps}
        for name, fill in fills.items():
            widen(link.norm, name, first.weight.new_full((count,), fill))
        link.norm.num_features += count


@torch.no_grad()
def grow_inputs(layer: Layer, count: int, each: int) -> None:
    """Let a layer read so many more channels of ``each`` inputs, those with odd numbers negated."""
    signs = torch.tensor([1.0, -1.0]).repeat(count // 2).repeat_interleave(each)
    read = layer.weight[:, : each * (count // 2)].unflatten(1, (-1, each)).repeat_interleave(2, dim=1).flatten(1, 2)
    widen(layer, "weight", read * signs.reshape(-1, *[1] * (read.ndim - 2)), dim=1)
    if isinstance(layer, nn.Conv2d):
        layer.in_channels += count * each
    else:
        layer.in_features += count * each


def widen(module: nn.Module, name: str, added: Tensor, *, dim: int = 0) -> None:
    """Append to a parameter or buffer."""
    old = getattr(module, name)
    new = torch.cat([old.detach(), added], dim)
    setattr(module, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
