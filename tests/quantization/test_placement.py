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


class _LinearAttention(nn.Module):
    """Sums of values and of weights in one product, which is then divided by the latter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mixed = nn.Conv2d(3, 12, 1), nn.Conv2d(4, 5, 1)

    def forward(self, images: Tensor) -> Tensor:
        query_NCP, key_NCP, value_NCP = self.stem(images).flatten(2).chunk(3, dim=1)
        value_NCP = torch.cat((value_NCP, torch.ones_like(value_NCP[:, :1])), dim=1)
        summed_NCP = (value_NCP @ key_NCP.relu().transpose(1, 2)) @ query_NCP.relu()
        mean_NCP = summed_NCP[:, :-1] / (summed_NCP[:, -1:] + 1e-6)
        return self.mixed(mean_NCP.unflatten(2, images.shape[2:])).mean((2, 3))


def test_what_is_divided_stays_float() -> None:
    """No engine divides codes; the product that is divided may differ a thousandfold between channels."""
    assert not {each for each in _rounded(_LinearAttention(), EVERYWHERE) if "matmul" in each or "slice" in each}


class _Pooled(nn.Module):
    """A residual stream that group normalisations read, with averages taken off, and a sum of products at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mixed, self.down = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, stride=2)
        self.first, self.second, self.pool = nn.GroupNorm(1, 8), nn.GroupNorm(1, 8), nn.AvgPool2d(3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        y = self.first(x)
        x = x + 0.1 * (self.pool(y) - y)
        x = x + self.mixed(self.second(x))
        x = self.down(x)
        return (x * x.softmax(1)).sum((2, 3))


def test_what_only_float_operations_read_stays_float() -> None:
    """OpenVINO took the products, as codes, for others (-39 dB)."""
    assert _rounded(_Pooled(), EVERYWHERE) == {"images", "conv2d", "group_norm_1", "conv2d_1", "add_1", "conv2d_2"}


def test_an_engine_that_yields_codes_only_rounds_what_linear_layers_yield() -> None:
    added = _rounded(Transformer(), Placement(yields_floats=False)) - _rounded(Transformer(), EVERYWHERE)
    assert added == {"linear", "linear_1", "linear_3"}
