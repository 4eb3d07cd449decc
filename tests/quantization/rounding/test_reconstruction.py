import pytest
import torch

from bitsweep.config.precision import Grid
from bitsweep.quantization.calibration.ranges import minmax_weight_range
from bitsweep.quantization.layerwise import UnitInputs, activated_units, block_units, evaluate, round_units
from bitsweep.quantization.rounding.reconstruction import Schedule, SoftRounding, reconstruct
from bitsweep.quantization.weights import Codes, nearest_codes
from tests.quantization.networks import images, mixed

GRID = Grid(bits=3, signed=True, symmetric=True, per_channel=True)


def test_it_starts_at_the_float_weights() -> None:
    weight = torch.randn(4, 3, 2, 2)
    scale = weight.abs().amax((1, 2, 3)) / GRID.hi
    soft = SoftRounding(weight, scale, torch.zeros(4, dtype=torch.int64), GRID)
    torch.testing.assert_close(soft.weight(soft.up), weight, rtol=0, atol=2e-4 * float(scale.max()))


def test_codes_are_neighbours_of_the_weights() -> None:
    weight = torch.tensor([[-0.9, -0.2, 0.4, 5.0]])
    soft = SoftRounding(weight, torch.tensor([1.0]), torch.tensor([0]), GRID)
    assert soft.codes().codes.tolist() == [[-1, 0, 0, 3]]
    with torch.no_grad():
        soft.v[:] = 10
    assert soft.codes().codes.tolist() == [[0, 0, 1, 3]]
    with torch.no_grad():
        soft.v[:] = -10
    assert soft.codes().codes.tolist() == [[-1, -1, 0, 3]]


@pytest.mark.parametrize("units", [activated_units, block_units])
@pytest.mark.slow
def test_outputs_are_closer_than_after_nearest_rounding(units: object) -> None:
    """For every unit, on what it was given, the learned rounding is at least as good, and better in sum."""
    errors: list[tuple[float, float]] = []
    generator = torch.Generator().manual_seed(0)

    def choose(given: UnitInputs) -> dict[str, Codes]:
        nearest = {path: nearest_codes(given.originals[path], GRID, minmax_weight_range) for path in given.weight_paths}
        soft = {
            path: SoftRounding(given.originals[path], each.scale, each.zero_point, GRID)
            for path, each in nearest.items()
        }
        learned = reconstruct(given, soft, Schedule(iterations=300, batch=16), generator)
        target = torch.cat(given.outputs())
        x = {node: torch.cat(batches) for node, batches in given.rounded_inputs.items()}
        both = []
        for codes in (learned, nearest):
            weights = {path: each.values for path, each in codes.items()}
            both.append((evaluate(given.unit.nodes, x, {**given.originals, **weights}) - target).square().mean().item())
        errors.append((both[0], both[1]))
        return learned

    graph = mixed()
    codes = round_units(graph, units(graph), images(64), choose)  # type: ignore[operator]
    assert len(codes) == 7
    assert all(learned < 1.05 * nearest for learned, nearest in errors)
    assert sum(learned / nearest for learned, nearest in errors) < 0.8 * len(errors)
