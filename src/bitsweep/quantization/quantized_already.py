"""Networks that compute with codes already: what somebody else's tool made of them."""

import torch

from bitsweep.graphs import tracing
from bitsweep.quantization.layer_records import layer_records, quantized_layers
from bitsweep.results import Compression, Shape


def with_its_quantizations(network: torch.nn.Module, *, input_shape: Shape) -> Compression:
    """Export a network with the quantizations that it has, and record its layers."""
    program = tracing.export(network.eval(), input_shape=input_shape)
    graph = tracing.graph_of(program)
    return Compression(program=program, layers=layer_records(graph, quantized_layers(graph)))
