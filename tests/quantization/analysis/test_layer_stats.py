"""What is seen of layers, against hooks on the network itself."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bitsweep.config.precision import Grid
from bitsweep.graphs import ops, tracing
from bitsweep.graphs.ops import is_layer
from bitsweep.quantization.analysis.layer_stats import layer_stats
from bitsweep.quantization.calibration.ranges import minmax_range, minmax_weight_range
from bitsweep.quantization.lowrank.chains import replace_by_chain
from bitsweep.quantization.placement import quantize_activations
from bitsweep.quantization.weights import nearest_codes, round_weights, store_codes
from bitsweep.results import LayerStats
from tests.quantization.networks import SIZE, images, mixed

WEIGHTS = Grid(bits=8, signed=True, symmetric=True, per_channel=True)
ACTIVATIONS = Grid(bits=8, signed=False, symmetric=False)


@pytest.fixture(scope="module")
def programs() -> tuple[Any, Any]:
    """A float network, and the same in eight bits."""
    before = tracing.export(mixed(), input_shape=(3, SIZE, SIZE))
    graph = mixed()
    codes = round_weights(graph, lambda weight: nearest_codes(weight, WEIGHTS, minmax_weight_range))
    graph, _ = quantize_activations(graph, ACTIVATIONS, minmax_range, images())
    store_codes(graph, codes)
    return before, tracing.export(graph, input_shape=(3, SIZE, SIZE))


@pytest.fixture(scope="module")
def stats(programs: tuple[Any, Any]) -> dict[str, LayerStats]:
    return {layer.name: layer for layer in layer_stats(*programs, images()[0])}


def test_every_layer_is_seen_and_is_a_little_noisy(stats: dict[str, LayerStats]) -> None:
    assert list(stats) == ["stem", "grouped", "depthwise", "point", "down", "hidden", "head"]
    for layer in stats.values():
        assert layer.input_sqnr_db is not None
        assert 20 < layer.input_sqnr_db < 60


def test_distributions_are_those_of_the_values(stats: dict[str, LayerStats], programs: tuple[Any, Any]) -> None:
    weight = programs[0].state_dict["hidden.weight"]
    seen = stats["hidden"].weights
    assert (seen.low, seen.high) == (weight.min().item(), weight.max().item())
    assert seen.mean == pytest.approx(weight.mean().item(), abs=1e-7)
    assert seen.std == pytest.approx(weight.std(correction=0).item())
    assert sum(seen.counts) == weight.numel()
    read = stats["stem"].inputs
    assert (read.low, read.high) == (images()[0].min().item(), images()[0].max().item())
    assert sum(read.counts) == images()[0].numel()


def test_maps_are_what_a_layer_reads(stats: dict[str, LayerStats], programs: tuple[Any, Any]) -> None:
    mapped = [name for name, layer in stats.items() if layer.maps_2CHW is not None]
    assert mapped == ["grouped", "point", "down"]  # the last two read vectors, and the first the image itself
    conv = programs[0].state_dict
    stem = nn.functional.conv2d(images()[0][:1], conv["stem.weight"], conv["stem.bias"], padding=1).relu()[0]
    chosen = stem.flatten(1).std(1, correction=0).argsort(descending=True)[:6].sort().values
    before, after = stats["grouped"].maps_2CHW
    np.testing.assert_allclose(before, stem[chosen], rtol=1e-4, atol=1e-5)
    assert 0 < np.abs(after - before).max() < 0.1 * np.abs(before).max()


def test_a_network_that_was_not_compressed_has_no_noise(programs: tuple[Any, Any]) -> None:
    (before, _) = programs
    for layer in layer_stats(before, before, images()[0]):
        assert layer.input_sqnr_db is None
        assert layer.maps_2CHW is None


def test_of_large_tensors_a_sample_is_counted() -> None:
    graph = tracing.trace(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 500)), input_shape=(3, SIZE, SIZE))
    program = tracing.export(graph, input_shape=(3, SIZE, SIZE))
    (layer,) = layer_stats(program, program, torch.randn(2, 3, SIZE, SIZE))
    weight = program.state_dict["1.weight"]
    assert sum(layer.weights.counts) == 65_536 < weight.numel()
    assert layer.weights.high == weight.max().item()
    assert layer.weights.std == pytest.approx(weight.std().item(), rel=0.02)


def test_what_overflows_has_no_ratio(programs: tuple[Any, Any]) -> None:
    before, _ = programs
    graph = mixed()
    ops.set_attribute(graph, "grouped.weight", torch.full_like(before.state_dict["grouped.weight"], 3e38))
    found = {
        layer.name: layer
        for layer in layer_stats(before, tracing.export(graph, input_shape=(3, SIZE, SIZE)), images()[0])
    }
    assert found["grouped"].input_sqnr_db is None  # what it reads is the same
    assert found["down"].input_sqnr_db is None  # what it reads is infinite
    assert found["depthwise"].maps_2CHW is None or not np.isfinite(found["depthwise"].maps_2CHW[1]).all()


def test_a_chain_is_known_by_the_layer_that_it_was() -> None:
    before, graph = tracing.export(mixed(), input_shape=(3, SIZE, SIZE)), mixed()
    (point,) = (node for node in graph.graph.nodes if is_layer(node) and node.args[1].target == "point.weight")
    replace_by_chain(graph, point, [torch.randn(3, 8, 1, 1), torch.randn(8, 3, 1, 1)])
    graph.recompile()
    found = {
        layer.name: layer
        for layer in layer_stats(before, tracing.export(graph, input_shape=(3, SIZE, SIZE)), images()[0])
    }
    assert found["point"].input_sqnr_db is None
    assert found["down"].input_sqnr_db < 10
