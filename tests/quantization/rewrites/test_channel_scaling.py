"""Scaling channels changes no result, and makes their ranges equal."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from bitsweep.graphs import tracing
from bitsweep.graphs.folding import fold_batch_norm, fold_hard_sigmoid
from bitsweep.graphs.ops import arguments, attribute, is_layer, set_attribute
from bitsweep.quantization.rewrites.channel_groups import ScalingGroup, group_of, layer_groups
from bitsweep.quantization.rewrites.channel_scaling import (
    even_factors,
    expected_reach,
    is_depthwise,
    reader_weights,
    scale_channels,
)

SIZE = 8


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.up(torch.relu(self.down(nn.functional.adaptive_avg_pool2d(x, 1))))
        return x * nn.functional.hardsigmoid(gate)


class Block(nn.Module):
    """A residual block; with more channels behind it, its shortcut is thinned out and padded with zeros."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.added = channels - 8
        self.first, self.second = (
            nn.Conv2d(8, 6, 3, padding=1),
            nn.Conv2d(6, channels, 1, stride=2 if self.added else 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(torch.relu(self.first(x)))
        if self.added:
            x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added // 2))
        return torch.relu(x + y)


class Branches(nn.Module):
    """Two layers side by side, whose outputs are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.one, self.other = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.squeeze(x))
        return torch.cat([torch.relu(self.one(x)), nn.functional.max_pool2d(self.other(x), 3, 1, 1)], 1)


class Parts(nn.Module):
    """Layers that read some of the channels each, and one that reads parts that were put together again."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.rest, self.some = nn.Conv2d(4, 5, 1), nn.Conv2d(5, 5, 1), nn.Conv2d(3, 5, 1)
        self.all = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        again = torch.cat([torch.relu(first), nn.functional.max_pool2d(second, 3, 1, 1)], 1)
        rest = x.split([3, 5], -3)[1]
        y: Tensor = self.last(second) + self.rest(rest) + self.some(x[:, 2:-3]) + self.all(again)
        return y


class Swapped(nn.Module):
    """Channels that change their places, some of which are there twice."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([*[*x.chunk(2, 1)][::-1], x[:, ::3], x], 1)


class Shuffled(nn.Module):
    """Halves that are processed apart, and shuffled then, by views or by the operation for it."""

    def __init__(self, *, by_views: bool) -> None:
        super().__init__()
        self.by_views, self.layer = by_views, nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, 1)
        y = torch.cat([one, torch.relu(self.layer(other))], 1)
        if not self.by_views:
            return nn.functional.channel_shuffle(y, 2)
        N, C, H, W = y.shape
        return y.view(N, 2, C // 2, H, W).transpose(1, 2).contiguous().view(N, C, H, W)


class Averaged(nn.Module):
    """Means over one side at a time."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        for dim in self.dims:
            x = x.mean(dim)
        return x


class Turned(nn.Module):
    """Channels become rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class AddedToItself(nn.Module):
    """Each channel is added to the one behind it, so that all have to have the same factor."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.cat([x[:, 1:], x[:, :1]], 1)


class Signed(nn.Module):
    """Magnitudes, other signs, multiples, and a difference."""

    def forward(self, x: Tensor) -> Tensor:
        return -(2 * x.abs()) / 3 - nn.functional.avg_pool2d(x, 3, 1, 1)


class Grown(nn.Module):
    """Reads what was yielded so far by a normalisation that no layer can take in, and puts its own behind it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm2d(channels), nn.Conv2d(channels, 4, 3, padding=1)
        for tensor in (self.norm.weight, self.norm.bias, self.norm.running_mean):
            nn.init.normal_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layer(torch.relu(self.norm(x)))], 1)


class Flattened(nn.Module):
    """A sum of features, of which several share a channel of the layer before."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 4, 3, stride=2), nn.Linear(36, 36)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)).flatten(1)
        return torch.cat([torch.relu(x + self.second(x)), x], 1)


def _network(between: nn.Module, *after: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), between, *after)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.bias)
    return network


DEPTHWISE, POINTWISE = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 5, 1)
NETWORKS = {
    "relu, depthwise": _network(nn.ReLU(), DEPTHWISE),
    "relu, grouped": _network(nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3, groups=2)),
    "hard-swish, depthwise": _network(nn.Hardswish(), DEPTHWISE),
    "silu, dense": _network(nn.SiLU(), POINTWISE),
    "squeeze and excite": _network(nn.Hardswish(), Gate(), POINTWISE),
    "prelu, dense": _network(nn.PReLU(8), POINTWISE),
    "branches": _network(nn.ReLU(), Branches(), POINTWISE),
    "flattened shortcut": _network(nn.ReLU(), Flattened(), nn.Linear(72, 5)),
    "shortcut": _network(Block(), nn.Conv2d(8, 5, 1)),
    "padded shortcut": _network(Block(), Block(12), nn.Conv2d(12, 5, 1)),
    "normalisations of their own": _network(Grown(8), Grown(12), Grown(16).norm, nn.ReLU(), nn.Conv2d(16, 5, 1)),
    "parts": _network(nn.ReLU(), Parts()),
    "swapped": _network(nn.ReLU(), Swapped(), nn.Conv2d(19, 5, 1)),
    "shuffled": _network(nn.ReLU(), Shuffled(by_views=True), Shuffled(by_views=False), POINTWISE),
    "added to itself": _network(nn.ReLU(), AddedToItself(), POINTWISE),
    "around": _network(nn.ReLU(), nn.CircularPad2d(1), POINTWISE),
    "signed": _network(Signed(), POINTWISE),
    "larger": _network(nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear"), POINTWISE),
    "pixels as channels": _network(nn.ReLU(), nn.PixelUnshuffle(2), nn.Conv2d(32, 5, 1)),
    "averaged": _network(nn.ReLU(), Averaged(3, 2), nn.Linear(8, 5)),
    "flattened": _network(nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(32, 5)),
}


def _graph(network: nn.Module) -> GraphModule:
    graph = tracing.trace(network.eval(), input_shape=(3, SIZE, SIZE))
    fold_batch_norm(graph)
    fold_hard_sigmoid(graph)
    return graph


def _images() -> Tensor:
    return torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def _group(graph: GraphModule) -> ScalingGroup:
    return layer_groups(graph)[0]


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_a_scaled_network_computes_the_same(network: nn.Module) -> None:
    graph, images = _graph(network), _images()
    before = graph(images)
    for group in layer_groups(graph):
        scale_channels(graph, group, torch.logspace(-2, 2, group.channels))
    graph.recompile()
    torch.testing.assert_close(graph(images), before, rtol=1e-4, atol=1e-4)


def test_parts_of_the_channels_have_their_factors() -> None:
    (group,) = layer_groups(_graph(NETWORKS["parts"]))
    assert group.channels == 8 and len(group.readers) == 4
    numbers = sorted(group.carriers[arguments(reader)[0]].tolist() for reader in group.readers)
    assert numbers == [[0, 1, 2, 3, 4, 5, 6, 7], [2, 3, 4], [3, 4, 5, 6, 7], [4, 5, 6, 7]]
    for name in ("larger", "pixels as channels", "around", "signed"):
        assert len(layer_groups(_graph(NETWORKS[name]))) == 1


def test_channels_take_their_factors_along() -> None:
    (group,) = layer_groups(_graph(NETWORKS["swapped"]))
    (read,) = (arguments(reader)[0] for reader in group.readers)
    assert group.carriers[read].tolist() == [4, 5, 6, 7, 0, 1, 2, 3, 0, 3, 6, 0, 1, 2, 3, 4, 5, 6, 7]
    group, *others = layer_groups(_graph(NETWORKS["shuffled"]))
    assert len(group.starts) == 3 and len(group.readers) == 3 and group.channels == 16 and not others
    (group,) = layer_groups(_graph(NETWORKS["added to itself"]))
    assert group.channels == 1


def test_normalisations_that_no_layer_takes_in_read_factors_and_yield_them() -> None:
    groups = layer_groups(_graph(NETWORKS["normalisations of their own"]))
    joined, *others = (group for group in groups if len(group.starts) > 1 or not is_layer(group.start))
    assert len(joined.starts) == 3 and joined.channels == 16 and not any(map(is_layer, joined.readers))
    assert [group.channels for group in others] == [8, 12, 16] and all(group.starts_with_layer for group in others)


def test_after_any_function_factors_are_a_product() -> None:
    graph, images = _graph(NETWORKS["hard-swish, depthwise"]), _images()
    before = graph(images)
    (function,) = (node for node in graph.graph.nodes if "hardswish" in str(node.target))
    for factor_C in (torch.logspace(-2, 2, 8), torch.logspace(1, -1, 8)):
        group = group_of(graph, function)
        assert group is not None and not group.gated and not group.starts_with_layer
        scale_channels(graph, group, factor_C)
        graph.recompile()
        torch.testing.assert_close(graph(images), before, rtol=1e-4, atol=1e-4)
    targets = [str(node.target) for node in graph.graph.nodes]
    assert "hardswish" in str(targets) and targets.count("aten.mul.Tensor") == 1


def test_factors_make_up_for_what_a_distortion_did() -> None:
    reach, weights, distortion = torch.rand(8) + 0.1, torch.rand(8) + 0.1, torch.logspace(-3, 0, 8)
    for meets, distorted in ((None, None), (weights, weights / distortion)):
        factor = even_factors(reach * distortion, distorted) / even_factors(reach, meets)
        torch.testing.assert_close(factor / factor[0], distortion / distortion[0])


@pytest.mark.parametrize("network", ["branches", "relu, grouped"])
def test_outputs_of_a_reader_count_alike_however_large_they_are(network: str) -> None:
    """Who multiplies an output, and divides what reads it, changes no factor."""
    reach = torch.rand(8) + 0.1
    graph = _graph(NETWORKS[network])
    before = reader_weights(graph, _group(graph), reach)
    for reader in _group(graph).readers:
        rows = attribute(graph, arguments(reader)[1])
        set_attribute(graph, str(arguments(reader)[1].target), rows * 10.0 ** torch.arange(len(rows)).view(-1, 1, 1, 1))
    after = reader_weights(graph, _group(graph), reach)
    assert before is not None and after is not None
    torch.testing.assert_close(after, before)


def test_dead_channels_are_left_alone() -> None:
    factor = even_factors(torch.tensor([4.0, 0.0, 1.0]), None)
    assert torch.isfinite(factor).all() and (factor > 0).all()
    torch.testing.assert_close(factor[0] / factor[2], torch.tensor(4.0))


def test_channels_that_few_images_reach_are_judged_by_their_parameters() -> None:
    graph = _graph(NETWORKS["relu, grouped"])
    group, distortion = _group(graph), torch.logspace(-3, 3, 8)
    reach = torch.rand(8) + 1
    reach[3] = 0
    before = expected_reach(graph, group, reach)
    assert before[3] > 0 and torch.equal(before[4:], reach[4:])
    scale_channels(graph, group, 1 / distortion)
    torch.testing.assert_close(expected_reach(graph, _group(graph), reach * distortion), before * distortion)


class Reach(Interpreter):
    """Largest magnitude of each channel of what nodes yield."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.of: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function" and result.ndim == 4:
            self.of[n.name] = result.abs().amax((0, 2, 3))
        return result


def test_channels_that_only_depthwise_layers_read_reach_equally_far() -> None:
    graph = _graph(NETWORKS["relu, depthwise"])
    group = _group(graph)
    assert (
        all(is_depthwise(graph, reader) for reader in group.readers)
        and reader_weights(graph, group, torch.ones(8)) is None
    )
    before = Reach(graph)
    before.run(_images())
    scale_channels(graph, group, even_factors(before.of["relu"], None))
    after = Reach(graph)
    after.run(_images())
    torch.testing.assert_close(after.of["relu"], after.of["relu"][:1].expand(8))


class Shortcut(nn.Module):
    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.first, self.between, self.second = nn.Conv2d(3, 8, 1), between, nn.Conv2d(8, 8, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.between(self.first(images))
        return x + self.second(x)


def test_what_is_concatenated_has_its_own_factors() -> None:
    *_, group = layer_groups(_graph(NETWORKS["branches"]))
    numbers = sorted(group.carriers[start].tolist() for start in group.starts)
    assert (numbers, group.channels, len(group.readers)) == ([[0, 1, 2, 3, 4, 5], [6, 7]], 8, 1)


def test_layers_along_shortcuts_share_factors() -> None:
    first, second, third = layer_groups(_graph(NETWORKS["padded shortcut"]))
    assert [len(group.starts) for group in (first, second, third)] == [3, 1, 1]
    assert first.channels == 12 and len(first.readers) == 3
    assert len({tuple(first.carriers[start].tolist()) for start in first.starts}) == 2


@pytest.mark.parametrize("between", [nn.ReLU(), nn.Identity()])
def test_what_others_read_too_is_not_scaled(between: nn.Module) -> None:
    assert layer_groups(_graph(Shortcut(between))) == []


class Divisor(nn.Module):
    """Channels that others are divided by, so that the factors are lost."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs()


@pytest.mark.parametrize("between", [nn.ReLU6(), nn.Sigmoid(), Turned(), Divisor()])
def test_what_does_not_let_factors_through_ends_the_search(between: nn.Module) -> None:
    assert layer_groups(_graph(_network(between, DEPTHWISE))) == []


def test_a_layer_that_reads_rows_does_not_make_up_for_channels() -> None:
    assert layer_groups(_graph(_network(nn.ReLU(), Averaged(3), nn.Linear(SIZE, 5)))) == []
    assert len(layer_groups(_graph(NETWORKS["averaged"]))) == 1
