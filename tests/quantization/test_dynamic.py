"""Dynamic quantization against its formula restated, and multiply-accumulates against PyTorch's own count."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from bitsweep.config.precision import Grid
from bitsweep.graphs import ops, tracing
from bitsweep.graphs.program import logits_of, profile_of
from bitsweep.quantization import dynamic
from tests.quantization.networks import SIZE, images, mixed

U8 = Grid(bits=8, signed=False, symmetric=False)


class Shared(nn.Module):
    """Two linear layers that read the same, and one on three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Linear(SIZE * SIZE, 6, bias=False)
        self.one, self.other = nn.Linear(18, 4), nn.Linear(18, 4, bias=False)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        x = self.rows(batch.flatten(2)).flatten(1)
        return self.one(x) + self.other(x)


def shared() -> GraphModule:
    torch.manual_seed(0)
    return tracing.trace(Shared(), input_shape=(3, SIZE, SIZE))


def rounded(x: np.ndarray) -> np.ndarray:
    """s (clamp(round(x / s) + z, 0, 255) - z), float64."""
    lo, hi = min(0.0, x.min()), max(0.0, x.max())
    scale = np.float64(np.float32(hi - lo) / np.float32(255)) or 1.0
    zero_point = np.clip(np.rint(-lo / scale), 0, 255)
    return scale * (np.clip(np.rint(x / scale) + zero_point, 0, 255) - zero_point)


@pytest.mark.parametrize("factor", [1.0, 1e-6, 0.0])
@torch.no_grad()
def test_against_the_formula(factor: float) -> None:
    """Also for values so small, or all zero, that a careless scale would have no reciprocal."""
    graph = shared()
    rows, one, other = (getattr(graph, name).weight.double().numpy() for name in ("rows", "one", "other"))
    bias = graph.one.bias.double().numpy()
    dynamic.quantize_reads(graph, U8)
    program = tracing.export(graph, input_shape=(3, SIZE, SIZE))
    (batch,) = images(5, batch=5)
    batch = batch * factor
    x = rounded((rounded(batch.flatten(2).numpy().astype(np.float64)) @ rows.T).reshape(5, -1))
    expected = x @ (one + other).T + bias
    # A value on the edge between two codes may go either way in float32.
    np.testing.assert_allclose(logits_of(program, [batch.numpy()]), expected, rtol=0, atol=2e-2 * factor + 1e-6)
    assert np.linalg.norm(logits_of(program, [batch.numpy()]) - expected) < 1e-2 * np.linalg.norm(expected)


@torch.no_grad()
def test_ranges_are_those_of_the_batch() -> None:
    graph = shared()
    dynamic.quantize_reads(graph, U8)
    program = tracing.export(graph, input_shape=(3, SIZE, SIZE))
    (batch,) = images(2, batch=2)
    alone = logits_of(program, [batch[:1].numpy()])
    beside = logits_of(program, [torch.cat([batch[:1], 100 * batch[1:]]).numpy()])[:1]
    assert np.abs(beside - alone).max() > 10 * np.abs(logits_of(program, [batch.numpy()])[:1] - alone).max()


def test_one_tensor_has_one_pair() -> None:
    graph = shared()
    dynamic.quantize_reads(graph, U8)
    assert sum("choose_qparams" in str(node.target) for node in graph.graph.nodes) == 2
    reads = {node.name: str(node.args[0]) for node in dynamic.linear_layers(graph)}
    assert reads["linear_1"] == reads["linear_2"] != reads["linear"]


@pytest.mark.parametrize("make", [mixed, shared])
def test_multiply_accumulates_are_those_that_pytorch_counts(make: type[GraphModule]) -> None:
    graph = make()
    (one,) = images(1, batch=1)
    executed = {
        kernel.name: kernel.macs
        for kernel in profile_of(tracing.export(graph, input_shape=(3, SIZE, SIZE)), one.numpy())
    }
    counted = {layer.node: dynamic.macs(graph, layer) for layer in ops.layers(graph)}
    assert counted == {name: macs for name, macs in executed.items() if macs}


def test_transposed_convolutions_are_counted_by_what_they_read() -> None:
    network = nn.Sequential(nn.ConvTranspose2d(3, 4, 2, stride=2), nn.Flatten(), nn.Linear(4 * 16 * 16, 2))
    graph = tracing.trace(network, input_shape=(3, SIZE, SIZE))
    transposed, linear = ops.layers(graph)
    assert dynamic.macs(graph, transposed) == SIZE * SIZE * 3 * 4 * 2 * 2
    assert dynamic.macs(graph, linear) == 4 * 16 * 16 * 2
