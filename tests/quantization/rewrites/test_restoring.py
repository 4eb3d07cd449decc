import copy

import pytest
import torch
from torch.fx import GraphModule

from bitsweep.config.precision import Grid
from bitsweep.graphs.ops import is_layer
from bitsweep.quantization.calibration.ranges import minmax_weight_range, mse_range
from bitsweep.quantization.layerwise import parameters_of
from bitsweep.quantization.placement import quantize_activations
from bitsweep.quantization.rewrites.restoring import gains, restore_outputs, scaled, with_parameters
from bitsweep.quantization.weights import nearest_codes, round_weights
from tests.quantization.networks import images, mixed

ACTIVATIONS = Grid(bits=5, signed=False, symmetric=False, per_channel=False)


@torch.no_grad()
@pytest.mark.parametrize("activations", [None, ACTIVATIONS])
def test_means_and_scale_of_what_the_network_yields_are_given_back(activations: Grid | None) -> None:
    graph, exact = rounded(activations)
    expected, before = outputs(exact), outputs(graph)
    alike = parameters_of(graph)
    factors = restore_outputs(graph, exact, images(), alike=alike)
    after = outputs(graph)
    assert (before.mean(0) - expected.mean(0)).abs().max() > 0.003
    torch.testing.assert_close(after.mean(0), expected.mean(0), rtol=1e-3, atol=1e-4)
    assert abs(gain(before, expected) - 1) > 0.01
    assert gain(after, expected) == pytest.approx(1, abs=1e-3)
    assert len(factors) == sum(map(is_layer, exact.graph.nodes))
    assert all((factor_C == factor_C[0]).all() for factor_C in factors.values())


@torch.no_grad()
def test_weights_are_what_they_were_times_a_factor() -> None:
    graph, exact = rounded(ACTIVATIONS)
    before = parameters_of(copy.deepcopy(graph))
    factors = restore_outputs(graph, exact, images())
    after = parameters_of(graph)
    for path, factor in factors.items():
        torch.testing.assert_close(after[path], scaled(before[path], factor))


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (90, 70), (3, 1500)])
def test_channels_without_noise_get_their_own_factor_back(size: tuple[int, int]) -> None:
    graph = mixed()
    exact = with_parameters(graph, {})
    path, weight = next((path, each) for path, each in parameters_of(graph).items() if path.endswith("weight"))
    wrong_C = torch.linspace(0.8, 1.25, len(weight), dtype=torch.float64)
    batches = [torch.randn(4, 3, *size, generator=torch.Generator().manual_seed(0))]
    factors = restore_outputs(with_parameters(graph, {path: scaled(weight, wrong_C)}), exact, batches, only={path})
    torch.testing.assert_close(factors[path], 1 / wrong_C, rtol=1e-4, atol=0)


def test_a_channel_of_noise_has_the_gain_of_its_layer() -> None:
    variance_C, gain_C = torch.tensor([1.0, 1.0, 1e-9, 0.0]).double(), torch.tensor([0.9, 0.9, 0.5, 0.9]).double()
    own_C = gain_C**2 * variance_C + torch.tensor([0.0, 0.01, 0.1, 0.1])
    found_C = gains(gain_C * variance_C, variance_C, own_C, 32)
    torch.testing.assert_close(found_C, torch.full_like(found_C, 0.9), rtol=1e-6, atol=0)
    few, many = (
        gains(torch.tensor([1.0, 0.95]).double(), torch.ones(2).double(), torch.tensor([1.01, 0.91]), n)
        for n in (1, 1000)
    )
    assert few.diff().abs() < 0.01 < 0.045 < many.diff().abs()


@torch.no_grad()
def test_means_alone_leave_the_weights() -> None:
    graph, exact = rounded(None)
    before = {path: weight.clone() for path, weight in parameters_of(graph).items() if path.endswith("weight")}
    assert restore_outputs(graph, exact, images(), scales=False) == {}
    for path, weight in before.items():
        assert torch.equal(parameters_of(graph)[path], weight)
    torch.testing.assert_close(outputs(graph).mean(0), outputs(exact).mean(0), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_only_the_layers_asked_for_are_changed() -> None:
    graph, exact = rounded(ACTIVATIONS)
    path = next(str(node.args[1].target) for node in graph.graph.nodes if is_layer(node))  # type: ignore[union-attr]
    assert restore_outputs(graph, exact, images(), only={path}).keys() == {path}


def rounded(activations: Grid | None) -> tuple[GraphModule, GraphModule]:
    """A network with weights of 3 bits, and the float one."""
    graph = mixed()
    parameters = parameters_of(graph)
    grid = Grid(bits=3, signed=True, symmetric=True)
    round_weights(graph, lambda weight: nearest_codes(weight, grid, minmax_weight_range))
    exact = with_parameters(graph, parameters)
    if activations is not None:
        graph, _ = quantize_activations(graph, activations, mse_range, images())
    return graph, exact


def outputs(graph: GraphModule) -> torch.Tensor:
    return torch.cat([graph(batch) for batch in images()])


def gain(outputs_NK: torch.Tensor, expected_NK: torch.Tensor) -> float:
    """By how much the scale of outputs is too large."""
    centred, meant = (each - each.mean(0) for each in (outputs_NK, expected_NK))
    return float((centred * meant).sum() / meant.square().sum())


def test_a_layer_that_noise_drowns_keeps_its_scale() -> None:
    variance_C = torch.ones(2).double()
    assert (gains(0.8 * variance_C, variance_C, 0.64 * variance_C + 0.1, 32) < 0.9).all()
    assert (gains(0.8 * variance_C, variance_C, 0.64 * variance_C + 0.2, 32) == 1).all()
