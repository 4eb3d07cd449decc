import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx import symbolic_trace

from bitsweep.graphs.ops import quantized
from bitsweep.graphs.qdq_pairs import fuse_pairs, round_to_grid

GRIDS = [
    (0, 255, torch.uint8),
    (-127, 127, torch.int8),
    (-8, 7, torch.int8),
    (0, 65535, torch.uint16),
    (-1, 1, torch.int8),
]


@given(
    scale=st.floats(2**-20, 1000, width=32),
    grid=st.sampled_from(GRIDS),
    where=st.floats(0, 1),
    values=st.lists(st.floats(-1e6, 1e6, width=32), max_size=20),
)
def test_values_are_those_of_the_codes(scale: float, grid: tuple, where: float, values: list[float]) -> None:  # type: ignore[type-arg]
    lo, hi, dtype = grid
    zero_point = lo + round(where * (hi - lo))
    ties = (torch.arange(-6, 7) / 2 * scale).tolist()
    x = torch.tensor([*values, *ties, 1e30, -1e30, float("inf"), -float("inf")])
    codes = quantized.quantize_per_tensor(x, scale, zero_point, lo, hi, dtype)
    expected = quantized.dequantize_per_tensor(codes, scale, zero_point, lo, hi, dtype)
    assert torch.equal(round_to_grid(x, scale, zero_point, lo, hi), expected)


@pytest.mark.parametrize("stays", ["", "codes", "scale"])
def test_only_what_is_undone_is_fused(stays: str) -> None:
    """Codes that something else reads, and those that are read on another scale, are computed as they are written."""

    def network(x: torch.Tensor) -> torch.Tensor:
        codes = torch.ops.quantized_decomposed.quantize_per_tensor.default(x, 0.1, 3, 0, 255, torch.uint8)
        scale = 0.2 if stays == "scale" else 0.1
        first = torch.ops.quantized_decomposed.dequantize_per_tensor.default(codes, 0.1, 3, 0, 255, torch.uint8)
        second = torch.ops.quantized_decomposed.dequantize_per_tensor.default(codes, scale, 3, 0, 255, torch.uint8)
        return first * second + (codes if stays == "codes" else 0)

    graph = symbolic_trace(network)
    (images,) = graph.graph.find_nodes(op="placeholder")
    images.meta["val"] = x = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32))
    expected = graph(x)
    fuse_pairs(graph)
    assert torch.equal(graph(x), expected)
    assert any("quantized_decomposed" in str(node.target) for node in graph.graph.nodes) == bool(stays)
