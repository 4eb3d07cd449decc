"""In transformers, factors go from layer normalisations and from values of attention to the layers that read them."""

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from bitsweep.graphs import tracing
from bitsweep.graphs.ops import aten
from bitsweep.quantization.rewrites.channel_scaling import scale_channels
from bitsweep.quantization.rewrites.token_groups import token_groups
from tests.quantization.networks import WIDTH, Transformer

SIZE = 16


class Windows(nn.Module):
    """Linear layers on shifted windows of what a layer normalisation yields, padded, and on means of another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.norm, self.inner = nn.Conv2d(3, WIDTH, 3, 3), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.last, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        y = torch.roll(nn.functional.pad(self.norm(x), (0, 0, 0, 1, 0, 1)), (1, 1), (1, 2))
        y = y.reshape(-1, 2, 3, 2, 3, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(-1, 9, WIDTH)
        y = self.inner(y).reshape(len(x), -1, WIDTH)
        return self.head(self.last(y).mean(1))


class Added(Windows):
    """What the normalisation yields is read by a sum, too, which does not make up for factors."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.patches(x).permute(0, 2, 3, 1).flatten(1, 2))
        return self.head(self.last(x + self.inner(x)).mean(1))


def _graph(network: nn.Module) -> GraphModule:
    return tracing.trace(network, input_shape=(3, SIZE, SIZE))


def _images() -> Tensor:
    return torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
def test_what_layers_make_up_for_is_found() -> None:
    found = token_groups(_graph(Transformer()), _images())
    named = {(group.start.name, tuple(reader.name for reader in group.readers)) for group in found}
    assert named == {
        ("layer_norm", ("linear",)), ("linear", ("linear_1",)), ("layer_norm_1", ("linear_2",)),
        ("linear_2", ("linear_3",)), ("layer_norm_2", ("linear_4",)),
    }  # fmt: skip
    (values,) = (group for group in found if group.start.name == "linear")
    assert values.reach_C is not None and (values.reach_C > 0).tolist() == [False] * 16 + [True] * 8
    assert [group.start.name for group in token_groups(_graph(Windows()), _images())] == ["layer_norm", "layer_norm_1"]
    assert [group.start.name for group in token_groups(_graph(Added()), _images())] == ["layer_norm_1"]


def test_a_scaled_network_computes_the_same() -> None:
    for network in (Transformer(), Windows()):
        graph, images = _graph(network), _images()
        before = graph(images)
        for group in token_groups(graph, images):
            assert group.reach_C is not None
            factor_C = torch.where(group.reach_C > 0, torch.logspace(-2, 2, group.channels), 1)
            scale_channels(graph, group, factor_C)
        graph.recompile()
        torch.testing.assert_close(graph(images), before, rtol=1e-3, atol=1e-3)


def test_networks_without_layer_normalisation_have_none() -> None:
    graph = _graph(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 2)))
    assert all(node.target != aten.layer_norm.default for node in graph.graph.nodes)
    assert token_groups(graph, _images()) == []
