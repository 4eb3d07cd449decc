"""Means of channels are moved into the layers that read them, and the network computes what it did."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from bitsweep.graphs import tracing
from bitsweep.graphs.ops import is_layer
from bitsweep.quantization.rewrites.centring import means_of, movable_means, move_means

SIZE, C = 8, 8
Between = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """A layer, something behind it, and a layer that reads that."""

    def __init__(self, between: Between, *, kernel: int = 1, padding: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.between = between
        self.first, self.other = nn.Conv2d(3, C, 3, padding=1), nn.Conv2d(3, C, 3, padding=1)
        self.shift = nn.Parameter(torch.randn(1, C, SIZE, SIZE))
        self.first.bias.data += 100 * torch.randn(C)
        with torch.no_grad():
            features = self.behind(torch.zeros(1, 3, SIZE, SIZE))
        self.reader: nn.Module = (
            nn.Linear(features.shape[-1], 4)
            if features.ndim == 2
            else nn.Conv2d(features.shape[1], 4, kernel, padding=padding, bias=False)
        )

    def behind(self, images: Tensor) -> Tensor:
        self.images = images
        return self.between(self, self.first(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.reader(self.behind(images)).flatten(1)


def _images() -> Tensor:
    return torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def _shuffled(net: Net, x: Tensor) -> Tensor:
    return x.view(-1, 2, C // 2, SIZE, SIZE).transpose(1, 2).reshape(-1, C, SIZE, SIZE)


HANDED_ON: dict[str, Between] = {
    "nothing": lambda net, x: x,
    "sum": lambda net, x: x + net.other(net.images),
    "sum with itself": lambda net, x: x + functional.max_pool2d(x, 3, 1, 1),
    "sum with a function": lambda net, x: x + torch.relu(net.other(net.images)),
    "sum with a parameter": lambda net, x: x + net.shift,
    "concatenation": lambda net, x: torch.cat([net.other(net.images).relu(), x], 1),
    "part": lambda net, x: x.chunk(2, 1)[1],
    "slice": lambda net, x: x[:, 2:7, 1:],
    "maximum": lambda net, x: functional.max_pool2d(x, 3, 2, 1),
    "average": lambda net, x: functional.avg_pool2d(x, 2),
    "average at borders": lambda net, x: functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "mean": lambda net, x: x.mean((2, 3)),
    "flat": lambda net, x: functional.max_pool2d(x, 2).flatten(1),
    "shuffled": _shuffled,
    "folded": lambda net, x: functional.pixel_unshuffle(x, 2),
    "larger": lambda net, x: functional.interpolate(x, scale_factor=2, mode="bilinear"),
}
KEPT: dict[str, Between] = {
    "function": lambda net, x: torch.relu(x),
    "product": lambda net, x: x * net.other(net.images),
    "function of a sum": lambda net, x: torch.relu(x + 1) + x,
    "average of zeros": lambda net, x: functional.avg_pool2d(x, 3, 1, 1),
    "squared": lambda net, x: x**2,
    "sum over channels": lambda net, x: x + x.mean(1, keepdim=True),
    "padded": lambda net, x: functional.pad(x, (1, 1, 1, 1)),
    "shared": lambda net, x: x + torch.relu(net.first(net.images * 2)),
}


def _traced(network: nn.Module) -> tuple[GraphModule, tuple[str, ...]]:
    graph = tracing.trace(network.eval(), input_shape=(3, SIZE, SIZE))
    return graph, tuple(str(node.args[1].target).partition(".")[0] for node in movable_means(graph))


@pytest.mark.parametrize("between", HANDED_ON.values(), ids=HANDED_ON)
def test_means_are_moved_and_the_function_stays(between: Between) -> None:
    graph, movable = _traced(Net(between))
    assert "first" in movable
    logits, layers = graph(_images()), movable_means(graph)
    means = means_of(graph, layers, _images())
    assert max(mean.abs().max() for mean in means.values()) > 50
    nodes = move_means(graph, means)
    graph.recompile()
    assert {node for node in nodes if is_layer(node)} > {*layers} and len(nodes) > 1
    torch.testing.assert_close(graph(_images()), logits, rtol=1e-4, atol=1e-3)
    for mean in means_of(graph, layers, _images()).values():
        assert mean.abs().max() < 1e-3


@pytest.mark.parametrize("between", KEPT.values(), ids=KEPT)
def test_what_no_reader_makes_up_for_is_kept(between: Between) -> None:
    _, movable = _traced(Net(between))
    assert "first" not in movable


@pytest.mark.parametrize(("kernel", "padding", "moves"), [(3, 0, True), (3, 1, False), (1, 0, True)])
def test_readers_that_see_zeros_at_borders_do_not_make_up_for_means(kernel: int, padding: int, moves: bool) -> None:
    _, movable = _traced(Net(lambda net, x: x, kernel=kernel, padding=padding))
    assert ("first" in movable) == moves


def test_means_of_what_a_network_yields_are_kept() -> None:
    _, movable = _traced(nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    assert movable == ()
