"""Layers read channels once that are multiples of one another, and compute what they did."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitsweep.graphs import tracing
from bitsweep.graphs.ops import arguments, attribute, is_layer
from bitsweep.quantization.rewrites.equal_channels import TOLERANCE, read_once, same_rows

SIZE, C = 4, 6
#: Channel 4 is a multiple of channel 1, and channel 5 is not: its bias is another one.
FACTOR = 3.0


class Net(nn.Module):
    """Two layers with something between."""

    def __init__(self, between: Callable[["Net", Tensor], Tensor], factor: float = FACTOR) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.dw, self.dense = (
            nn.Conv2d(3, C, 3, padding=1),
            nn.Conv2d(C, C, 3, groups=C),
            nn.Conv2d(C, C, 1),
        )
        self.down, self.up = nn.Conv2d(C, 3, 1), nn.Conv2d(3, C, 1)
        self.norm, self.between = nn.LayerNorm(C), between
        for layer, times in ((self.first, factor), (self.up, 1.0), (self.dw, 1.0)):
            for other in (4, 5):
                layer.weight.data[other] = layer.weight.data[1] * times
                layer.bias.data[other] = layer.bias.data[1] * times + (other == 5)
        with torch.no_grad():
            features = between(self, self.first(torch.zeros(1, 3, SIZE, SIZE)))
        tokens = features.ndim == 4 and features.shape[-1] == C
        self.reader = nn.Linear(features.shape[-1], 4) if tokens or features.ndim == 2 else nn.Conv2d(
            features.shape[1], 4, 1
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(self.between(self, self.first(x))).flatten(1)


def _gated(net: Net, x: Tensor) -> Tensor:
    x = torch.relu(x)
    return x * torch.sigmoid(net.up(torch.relu(net.down(x.mean((2, 3), keepdim=True)))))


MERGED: dict[str, tuple[Callable[[Net, Tensor], Tensor], float]] = {
    "nothing": (lambda net, x: x, FACTOR),
    "relu": (lambda net, x: torch.relu(x), FACTOR),
    "hardswish": (lambda net, x: nn.functional.hardswish(x), 1.0),
    "depthwise": (lambda net, x: nn.functional.relu6(net.dw(nn.functional.hardswish(x))), 1.0),
    "gate": (_gated, FACTOR),
    "sum": (lambda net, x: torch.relu(x) + nn.functional.max_pool2d(x, 3, 1, 1), 1.0),
    "mean": (lambda net, x: torch.relu(x).mean((2, 3)), FACTOR),
    "flat": (lambda net, x: nn.functional.max_pool2d(torch.relu(x), 2).flatten(1), FACTOR),
    "tokens": (lambda net, x: nn.functional.gelu(x.permute(0, 2, 3, 1)), 1.0),
}
KEPT: dict[str, tuple[Callable[[Net, Tensor], Tensor], float]] = {
    "multiples before hardswish": (lambda net, x: nn.functional.hardswish(x), FACTOR),
    "multiples before relu6": (lambda net, x: nn.functional.relu6(x), FACTOR),
    "gates of their own": (lambda net, x: x * torch.sigmoid(net.dense(x)), 1.0),
    "sums with others": (lambda net, x: x + net.dense(x), 1.0),
    "normalised": (lambda net, x: net.norm(x.permute(0, 2, 3, 1)), FACTOR),
}


def _graph(between: Any, factor: float) -> Any:
    return tracing.trace(Net(between, factor).eval(), input_shape=(3, SIZE, SIZE))


def _columns(graph: Any) -> Tensor:
    """Largest weight that each channel meets in the last layer, [C]."""
    reader = [node for node in graph.graph.nodes if is_layer(node)][-1]
    weight = attribute(graph, arguments(reader)[1])
    return weight.flatten(2).abs().amax((0, 2)) if weight.ndim > 2 else weight.abs().amax(0).view(C, -1).amax(1)


@pytest.mark.parametrize(("between", "factor"), MERGED.values(), ids=MERGED)
def test_multiples_are_read_once(between: Any, factor: float) -> None:
    graph, images = _graph(between, factor), torch.randn(4, 3, SIZE, SIZE)
    logits, before = graph(images), _columns(graph)
    merged = read_once(graph)
    torch.testing.assert_close(graph(images), logits, rtol=1e-4, atol=1e-5)
    after = _columns(graph)
    assert after[4] == 0 and after[1] > 0
    torch.testing.assert_close(after[[0, 2, 3, 5]], before[[0, 2, 3, 5]])
    assert len(merged) == (2 if between is _gated else 1)


@pytest.mark.parametrize(("between", "factor"), KEPT.values(), ids=KEPT)
def test_what_functions_tell_apart_is_read_as_before(between: Any, factor: float) -> None:
    graph = _graph(between, factor)
    before = _columns(graph)
    read_once(graph)
    torch.testing.assert_close(_columns(graph), before)


@pytest.mark.parametrize("function", [torch.relu, nn.functional.relu6, nn.functional.hardswish])
@pytest.mark.parametrize("bias", [-1.0, -1e3])
def test_what_a_rectifier_holds_at_0_is_not_read(function: Callable[[Tensor], Tensor], bias: float) -> None:
    net = Net(lambda net, x: function(x)).eval()
    net.first.bias.data[2] = bias
    graph, images = tracing.trace(net, input_shape=(3, SIZE, SIZE)), torch.randn(4, 3, SIZE, SIZE)
    (name,) = (node.name for node in graph.graph.nodes if node.op == "placeholder")
    logits, ends_C = graph(images), torch.full((3,), 4.0)
    read_once(graph, {name: (-ends_C, ends_C)})
    assert (_columns(graph)[2] == 0) == (bias == -1e3 and function is not nn.functional.hardswish)
    torch.testing.assert_close(graph(images), logits, rtol=1e-4, atol=1e-5)


def test_rows_are_the_same_within_the_tolerance_and_their_class() -> None:
    rows = torch.randn(7, 5, dtype=torch.float64)
    rows[3] = rows[6] = rows[0]
    rows[4] = rows[0] * (1 + TOLERANCE / 100)
    rows[5] = rows[0] * (1 + TOLERANCE * 100)
    classes = same_rows(rows, torch.tensor([0, 0, 0, 0, 0, 0, 1]))
    assert classes[0] == classes[3] == classes[4]
    assert len(set(classes.tolist())) == 5
