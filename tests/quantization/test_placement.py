"""Pairs stand where something computes on codes."""

import torch
from torch import Tensor, nn

from bitsweep.config.precision import Grid
from bitsweep.graphs import tracing
from bitsweep.graphs.ops import quantized
from bitsweep.quantization.calibration.ranges import minmax_range
from bitsweep.quantization.placement import EVERYWHERE, Placement, quantize_activations
from tests.quantization.networks import Transformer

ACTIVATIONS = Grid(bits=8, signed=False, symmetric=False)


def _rounded(network: nn.Module, placement: Placement) -> set[str]:
    """Names of the nodes whose outputs are rounded in a network."""
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    graph = tracing.trace(network.eval(), input_shape=(3, 16, 16))
    graph, _ = quantize_activations(graph, ACTIVATIONS, minmax_range, [images], placement)
    pairs = [node for node in graph.graph.nodes if node.target == quantized.quantize_per_tensor.default]
    return {str(node.args[0].name) for node in pairs if not node.args[0].name.startswith("dequantize")}


def test_the_residual_stream_and_what_attention_reads_stay_float() -> None:
    attended = {"scaled_dot_product_attention", "transpose_1", "reshape_1"}
    assert _rounded(Transformer(), EVERYWHERE) == {
        "x",
        "conv2d",
        "layer_norm",
        "layer_norm_1",
        "relu",
        "select",
        *attended,
    }


class _ClassAttention(nn.Module):
    """Tokens of an image, and a token of the class of a thirtieth of their range, which alone is normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.full((1, 1, 8), 0.03))
        self.mixed, self.head = nn.Linear(8, 8), nn.Linear(8, 5)
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, images: Tensor) -> Tensor:
        image_NTC = self.stem(images).flatten(2).transpose(1, 2)
        tokens_NTC = torch.cat((self.token.expand(len(images), -1, -1), image_NTC), dim=1)
        tokens_NTC = tokens_NTC + self.mixed(self.first(tokens_NTC))
        joined_NTC = torch.cat((self.second(tokens_NTC[:, :1]), tokens_NTC[:, 1:]), dim=1)
        tokens_NTC = tokens_NTC + joined_NTC
        return self.head(self.second(tokens_NTC[:, :1])[:, 0])


def test_tokens_that_are_joined_and_parted_stay_float() -> None:
    assert _rounded(_ClassAttention(), EVERYWHERE) == {"images", "conv2d", "layer_norm", "select"}


def test_an_engine_that_yields_codes_only_rounds_what_linear_layers_yield() -> None:
    added = _rounded(Transformer(), Placement(yields_floats=False)) - _rounded(Transformer(), EVERYWHERE)
    assert added == {"linear", "linear_1", "linear_3"}
