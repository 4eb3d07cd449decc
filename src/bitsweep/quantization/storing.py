"""What methods end with: the program of a graph, with its parameters as they are kept, and a record of each layer."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
from torch.fx import GraphModule

from bitsweep.config.precision import Grid, Scheme
from bitsweep.graphs import ops, tracing
from bitsweep.graphs.lifting import program_of
from bitsweep.graphs.ops import Layer
from bitsweep.quantization import casting
from bitsweep.quantization.biases import store_biases
from bitsweep.quantization.layer_records import layer_records
from bitsweep.quantization.weights import Codes, store_codes
from bitsweep.results import Compression, Curve, Shape, Table


def stored(
    graph: GraphModule,
    codes: Mapping[str, Codes],
    *,
    originals: tuple[Layer, ...],
    clipped: Mapping[str, float],
    curves: tuple[Curve, ...] = (),
    tables: tuple[Table, ...] = (),
    remedies: Mapping[str, str] = MappingProxyType({}),
) -> Compression:
    """The program of a graph whose activations pass through codes: weights and biases as codes; and layer records.

    Args:
        codes: of the weights, by their path.
        originals: the layers of the float network.
        clipped: share of each activation's values that lay beyond its range, by the name of its node.
        remedies: what the guard did to layers, by their names.
    """
    store_codes(graph, store_biases(graph, codes))
    records = tuple(
        replace(record, remedy=remedies.get(record.name, "")) for record in layer_records(graph, originals, clipped)
    )
    return Compression(program=program_of(graph), layers=records, curves=curves, tables=tables)


def in_half_precision(
    model: torch.nn.Module, scheme: Scheme, *, input_shape: Shape, curves: tuple[Curve, ...] = ()
) -> Compression:
    """A network in half precision: as storage of its parameters, or as its arithmetic, as the scheme says."""
    assert not isinstance(scheme.weights, Grid) and not isinstance(scheme.activations, Grid)
    graph, _ = tracing.folded(model, input_shape=input_shape)
    originals = ops.layers(graph)
    casting.cast(graph, scheme.weights, scheme.activations)
    records = layer_records(graph, originals)
    return Compression(program=program_of(graph), layers=records, curves=curves)
