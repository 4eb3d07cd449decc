"""Weights as codes in a graph."""

import pytest
import torch
from torch import Tensor, nn

from bitsweep.config.precision import Grid
from bitsweep.graphs.tracing import trace
from bitsweep.quantization.calibration.ranges import minmax_weight_range
from bitsweep.quantization.weights import nearest_codes, round_weights, store_codes


class Scaled(nn.Module):
    """A layer that runs twice, with a learned scale of the name that the scale of its codes would have."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.weight_scale = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.full((3,), 9.0))

    def forward(self, images: Tensor) -> Tensor:
        x = images.mean((2, 3))
        for _ in range(2):
            x = torch.relu(nn.functional.linear(x, self.weight) * self.weight_scale)
        return x


@pytest.mark.parametrize("per_channel", [True, False])
@torch.no_grad()
def test_codes_take_no_other_tensors_place_and_are_stored_once(per_channel: bool) -> None:
    graph, images = trace(Scaled().eval(), input_shape=(3, 4, 4)), torch.randn(5, 3, 4, 4)
    grid = Grid(bits=8, signed=True, symmetric=True, per_channel=per_channel)
    codes = round_weights(graph, lambda weight: nearest_codes(weight, grid, minmax_weight_range))
    rounded = graph(images)
    store_codes(graph, codes)
    torch.testing.assert_close(graph(images), rounded)
    stored = [name for name, value in graph.named_buffers() if value.dtype == torch.int8 and value.ndim == 2]
    assert stored == ["weight_codes"]
