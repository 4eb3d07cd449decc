import pytest
import torch
from torch import nn

from bitsweep.errors import CompressionError
from bitsweep.graphs import ops, tracing
from bitsweep.graphs.folding import affine_of_norm, fold_batch_norm, fold_hard_sigmoid, fold_weights


def lively(network: nn.Module) -> nn.Module:
    """A network whose normalisations have statistics of their own, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low in ((module.running_mean, -1), (module.running_var, 0.5)):
                if tensor is not None:
                    tensor.uniform_(low, 2, generator=generator)
            if module.affine:
                nn.init.uniform_(module.weight, -1, 2, generator=generator)
                nn.init.uniform_(module.bias, -1, 1, generator=generator)
    return network.eval()


NETWORKS = {
    "without bias": nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2)),
    "with bias": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2)),
    "depthwise": nn.Sequential(
        nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(216, 2)
    ),
    "not affine": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.Linear(144, 2)),
    "linear": nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)),
}


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_folding_changes_nothing_but_the_graph(name: str) -> None:
    network = lively(NETWORKS[name])
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = network(images)
    graph = tracing.trace(network, input_shape=(3, 8, 8))
    fold_batch_norm(graph)
    torch.testing.assert_close(graph(images), expected, rtol=1e-4, atol=1e-5)
    operations = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
    assert not any("norm" in operation or "mul" in operation for operation in operations)
    assert len(ops.layers(graph)) == 2
    assert all(layer.bias is not None for layer in ops.layers(graph))


class NotAfterALayer(nn.Module):
    """One normalisation of the images, one of a convolution whose output is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.second = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.first(images))
        return (self.second(x) + x).mean((2, 3))


@torch.no_grad()
def test_what_cannot_be_folded_becomes_an_affine_map() -> None:
    network = lively(NotAfterALayer())
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = network(images)
    graph = tracing.trace(network, input_shape=(3, 8, 8))
    fold_batch_norm(graph)
    torch.testing.assert_close(graph(images), expected, rtol=1e-4, atol=1e-5)
    assert "aten.batch_norm.default" not in {str(node.target) for node in graph.graph.nodes}


def test_folded_weights_against_the_formula() -> None:
    weight, bias = torch.tensor([[2.0, 4.0], [1.0, 1.0]]), torch.tensor([1.0, -1.0])
    factor, offset = affine_of_norm(
        gamma=torch.tensor([3.0, 1.0]),
        beta=torch.tensor([0.5, 0.0]),
        mean=torch.tensor([2.0, 0.0]),
        variance=torch.tensor([0.25, 1.0]),
        eps=0.0,
    )
    folded_weight, folded_bias = fold_weights(weight, bias, factor=factor, offset=offset)
    # W' = W gamma / sqrt(v) with gamma / sqrt(v) = 3 / 0.5 and 1; b' = beta + (b - mu) gamma / sqrt(v)
    torch.testing.assert_close(folded_weight, torch.tensor([[12.0, 24.0], [1.0, 1.0]]))
    torch.testing.assert_close(folded_bias, torch.tensor([0.5 + (1 - 2) * 6, -1.0]))


def test_statistics_of_the_batch_are_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    with pytest.raises(CompressionError, match="set track_running_stats=True"):
        fold_batch_norm(tracing.trace(network, input_shape=(3, 8, 8)))


class Gates(nn.Module):
    """A hard-sigmoid that alone reads a layer, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = 9 * nn.functional.hardsigmoid(self.first(3 * images))
        y = self.second(x)
        return (y * nn.functional.hardsigmoid(y)).flatten(1)


@torch.no_grad()
def test_what_is_left_of_a_hard_sigmoid_after_a_layer_is_a_clamp() -> None:
    torch.manual_seed(0)
    network, images = Gates().eval(), torch.randn(3, 3, 8, 8)
    expected = network(images)
    graph = tracing.trace(network, input_shape=(3, 8, 8))
    fold_hard_sigmoid(graph)
    torch.testing.assert_close(graph(images), expected, rtol=1e-4, atol=1e-5)
    gates = [node for node in graph.graph.nodes if "hard" in str(node.target)]
    assert [str(gate.target) for gate in gates] == ["aten.hardtanh.default", "aten.hardsigmoid.default"]
    assert gates[0].args[1:] == (0, 1)
    clamped = ops.attribute(graph, gates[0].args[0].args[1])
    torch.testing.assert_close(clamped, network.first.weight / 6)
