from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bitsweep.graphs import tracing
from bitsweep.graphs.ops import is_layer

C = 6


class Net(nn.Module):
    """A stem, two depthwise convolutions beside each other, and a head."""

    def __init__(self, sums: Callable[["Net", Tensor], Tensor], one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.stem, self.one, self.other, self.head = nn.Conv2d(3, C, 3), one, other, nn.Linear(C, 4)
        self.norm, self.behind, self.sums = nn.BatchNorm2d(C), nn.BatchNorm2d(C), sums

    def forward(self, images: Tensor) -> Tensor:
        x = self.sums(self, torch.relu(self.stem(images)))
        logits: Tensor = self.head(torch.relu(self.behind(x)).mean((2, 3)))
        return logits


def depthwise(size: int, *, norm: bool = True, **settings: int) -> nn.Module:
    convolution = nn.Conv2d(C, C, size, groups=C, bias=not norm, **settings)  # type: ignore[arg-type]
    return nn.Sequential(convolution, nn.BatchNorm2d(C)) if norm else convolution


def branches(net: Net, x: Tensor) -> Tensor:
    return net.one(x) + net.other(x)


def with_identity(net: Net, x: Tensor) -> Tensor:
    return net.other(x) + x + net.one(x)


def with_norm(net: Net, x: Tensor) -> Tensor:
    return 0 + net.norm(x) + (net.one(x) + net.other(x))


def residual(net: Net, x: Tensor) -> Tensor:
    return net.other(x + net.one(x))


def with_number(net: Net, x: Tensor) -> Tensor:
    return net.one(x) + net.other(x) + 1


def read_again(net: Net, x: Tensor) -> Tensor:
    y = net.one(x)
    return y + net.other(x) + torch.sigmoid(y)


def of_others(net: Net, x: Tensor) -> Tensor:
    return net.one(x) + net.other(torch.relu(x - 0.1))


def twice(net: Net, x: Tensor) -> Tensor:
    return net.one(x) + net.one(x)


def scaled(net: Net, x: Tensor) -> Tensor:
    return torch.add(net.one(x), net.other(x), alpha=2)


@pytest.mark.parametrize(
    ("sums", "one", "other"),
    [
        (branches, depthwise(3, padding=1), depthwise(1)),
        (branches, depthwise(1, norm=False), depthwise(5, padding=2)),
        (branches, depthwise(3, padding=1), depthwise(3, padding=1, norm=False)),
        (branches, depthwise(5, padding=2, stride=2), depthwise(3, padding=1, stride=2)),
        (branches, depthwise(3, padding=2, dilation=2), depthwise(1)),
        (branches, depthwise(5, padding=4, dilation=2), depthwise(3, padding=2, dilation=2)),
        (branches, depthwise(3, padding=2), depthwise(1, padding=1)),
        (with_identity, depthwise(3, padding=1), depthwise(1)),
        (with_norm, depthwise(7, padding=3), depthwise(3, padding=1)),
    ],
)
def test_branches_become_one_convolution(
    sums: Callable[[Net, Tensor], Tensor], one: nn.Module, other: nn.Module
) -> None:
    layers, difference = traced(Net(sums, one, other))
    assert layers == 3
    assert difference < 1e-5


@pytest.mark.parametrize(
    ("sums", "one", "other", "layers"),
    [
        (residual, depthwise(3, padding=1), depthwise(1), 4),
        (with_number, depthwise(3, padding=1), depthwise(1), 4),
        (read_again, depthwise(3, padding=1), depthwise(1), 4),
        (of_others, depthwise(3, padding=1), depthwise(1), 4),
        (scaled, depthwise(3, padding=1), depthwise(1), 4),
        (twice, depthwise(3, padding=1), nn.Identity(), 4),
        (branches, depthwise(3, padding=1), depthwise(3, padding=2, dilation=2), 4),
        (branches, nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 1), 4),
    ],
)
def test_other_sums_stay_as_they_are(
    sums: Callable[[Net, Tensor], Tensor], one: nn.Module, other: nn.Module, layers: int
) -> None:
    found, difference = traced(Net(sums, one, other))
    assert found == layers
    assert difference < 1e-5


def traced(net: Net) -> tuple[int, float]:
    """How many layers the graph of a network with random normalisations has, and how far it is from the network."""
    torch.manual_seed(0)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                nn.init.uniform_(values, 0.5, 2)  # type: ignore[arg-type]
    images = torch.randn(2, 3, 13, 11)
    graph, normalized = tracing.folded(net.eval(), input_shape=(3, 13, 11))
    assert len(normalized) == len(set(normalized))
    with torch.no_grad():
        return sum(map(is_layer, graph.graph.nodes)), float((graph(images) - net(images)).abs().max())
