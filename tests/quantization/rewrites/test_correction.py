import torch

from bitsweep.config.precision import Grid
from bitsweep.quantization.calibration.ranges import minmax_weight_range
from bitsweep.quantization.layerwise import parameters_of
from bitsweep.quantization.rewrites.correction import correct_biases
from bitsweep.quantization.weights import nearest_codes, round_weights
from tests.quantization.networks import images, mixed


@torch.no_grad()
def test_the_mean_of_every_output_is_given_back() -> None:
    graph = mixed()
    expected = torch.cat([graph(batch) for batch in images()]).mean(0)
    originals = parameters_of(graph)
    grid = Grid(bits=3, signed=True, symmetric=True)
    round_weights(graph, lambda weight: nearest_codes(weight, grid, minmax_weight_range))
    before = torch.cat([graph(batch) for batch in images()]).mean(0)
    correct_biases(graph, originals, images())
    after = torch.cat([graph(batch) for batch in images()]).mean(0)
    assert (before - expected).abs().max() > 0.003
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)
