"""What is told of channels is what PyTorch's own, slower functions say."""

import pytest
import torch
from torch.fx import Graph, Node

from bitsweep.graphs.ops import aten
from bitsweep.quantization.analysis.channels import ends_of_channels, mean_of_channels, variance_of_channels


def _node(target: object) -> Node:
    graph = Graph()
    return graph.call_function(target, (graph.placeholder("x"),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "shape", "axis"),
    [
        (aten.conv2d.default, (3, 4, 5, 6), 1),
        (aten.relu.default, (3, 4), 1),
        (aten.linear.default, (3, 4), 1),
        (aten.linear.default, (3, 5, 4), 2),
        (aten.layer_norm.default, (3, 5, 6, 4), 3),
    ],
)
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_channels_are_told_as_pytorch_tells_them(
    target: object, shape: tuple[int, ...], axis: int, offset: float
) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + offset
    if values.ndim == 4:
        values = values.contiguous(memory_format=torch.channels_last)
    node, rows_CM = _node(target), values.movedim(axis, 0).flatten(1)
    low_C, high_C = torch.aminmax(rows_CM, dim=1)
    assert all(map(torch.equal, ends_of_channels(values, node), (low_C, high_C)))
    torch.testing.assert_close(mean_of_channels(values, node), rows_CM.mean(1))
    variance_C = rows_CM.double().var(1, correction=0).float()
    torch.testing.assert_close(variance_of_channels(values, node), variance_C, rtol=1e-3, atol=1e-6)
