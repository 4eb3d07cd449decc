import pytest
import torch
from torch import nn

from bitsweep.graphs import ops, tracing
from bitsweep.quantization.rewrites.equalization import absorb_high_biases, equalize, equalizing_factors, pairs
from tests.quantization.networks import images, mixed


def network() -> nn.Sequential:
    """Pairs across ReLU, clamp, pooling and flattening, a depthwise convolution among them, with uneven channels."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU6(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 8, 1),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 5), nn.ReLU(), nn.Linear(5, 2),
    )  # fmt: skip
    with torch.no_grad():
        for layer in layers[:6:2]:
            layer.weight *= torch.logspace(-2, 0, len(layer.weight)).view(-1, 1, 1, 1)
    return layers


@torch.no_grad()
def test_the_network_computes_the_same_with_even_ranges() -> None:
    model = network()
    model[1] = nn.ReLU()  # a bound of 6 would not be kept
    batch = torch.randn(4, 3, 8, 8)
    expected = model(batch)
    graph = tracing.trace(model, input_shape=(3, 8, 8))
    assert equalize(graph) == 4
    torch.testing.assert_close(graph(batch), expected, rtol=1e-4, atol=1e-5)
    first, second, third, *_ = (layer.weight for layer in ops.layers(graph))
    torch.testing.assert_close(first.abs().amax((1, 2, 3)), second.abs().amax((1, 2, 3)), rtol=1e-2, atol=0)
    torch.testing.assert_close(second.abs().amax((1, 2, 3)), third.abs().amax((0, 2, 3)), rtol=1e-2, atol=0)


def test_a_clamp_becomes_a_relu() -> None:
    graph = tracing.trace(network(), input_shape=(3, 8, 8))
    equalize(graph)
    targets = [str(node.target) for node in graph.graph.nodes]
    assert not any("relu6" in target or "hardtanh" in target for target in targets)
    assert targets.count("aten.relu.default") == 4


def test_no_pair_crosses_an_addition() -> None:
    found = [(pair.first.args[1].target, pair.second.args[1].target) for pair in pairs(mixed())]
    assert found == [
        ("grouped.weight", "depthwise.weight"),
        ("depthwise.weight", "point.weight"),
        ("down.weight", "hidden.weight"),
        ("hidden.weight", "head.weight"),
    ]


def test_factors_against_the_formula() -> None:
    factor = equalizing_factors(torch.tensor([8.0, 1.0, 0.0]), torch.tensor([2.0, 4.0, 3.0]))
    assert factor.tolist() == pytest.approx([2.0, 0.5, 1.0])  # 8 / 2 = 2 * 2; 1 / 0.5 = 4 * 0.5; a dead channel stays


@torch.no_grad()
def test_a_bias_that_always_passes_is_absorbed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1, bias=False), nn.Flatten(), nn.Linear(180, 2)
    )
    model[0].bias[:] = torch.tensor([0.0, 50.0, 0.0, 100.0])
    batches = images()
    expected = model(batches[0])
    graph = tracing.trace(model, input_shape=(3, 8, 8))
    absorb_high_biases(graph, batches)
    torch.testing.assert_close(graph(batches[0]), expected, rtol=1e-3, atol=1e-3)
    first, second, _ = ops.layers(graph)
    assert first.bias is not None and second.bias is not None
    assert (first.bias.abs() < 10).all()
    assert second.bias.abs().max() > 1
