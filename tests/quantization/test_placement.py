"""Pairs stand where something computes on codes."""

import torch

from bitsweep.config.precision import Grid
from bitsweep.graphs import tracing
from bitsweep.graphs.ops import quantized
from bitsweep.quantization.calibration.ranges import minmax_range
from bitsweep.quantization.placement import EVERYWHERE, Placement, quantize_activations
from tests.quantization.networks import Transformer

ACTIVATIONS = Grid(bits=8, signed=False, symmetric=False)


def _rounded(placement: Placement) -> set[str]:
    """Names of the nodes whose outputs are rounded in a transformer."""
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    graph = tracing.trace(Transformer(), input_shape=(3, 16, 16))
    graph, _ = quantize_activations(graph, ACTIVATIONS, minmax_range, [images], placement)
    pairs = [node for node in graph.graph.nodes if node.target == quantized.quantize_per_tensor.default]
    return {str(node.args[0].name) for node in pairs if not node.args[0].name.startswith("dequantize")}


def test_the_residual_stream_and_what_attention_reads_stay_float() -> None:
    attended = {"scaled_dot_product_attention", "transpose_1", "reshape_1"}
    assert _rounded(EVERYWHERE) == {"x", "conv2d", "layer_norm", "layer_norm_1", "relu", "select", *attended}


def test_an_engine_that_yields_codes_only_rounds_what_linear_layers_yield() -> None:
    added = _rounded(Placement(yields_floats=False)) - _rounded(EVERYWHERE)
    assert added == {"linear", "linear_1", "linear_3"}
