import pytest
import torch
from torch import nn

from bitsweep.config.precision import Grid, Scheme
from bitsweep.graphs.tracing import trace
from bitsweep.methods.gptq import Gptq
from bitsweep.quantization import fitting
from bitsweep.quantization.layerwise import layer_units, layerwise, parameters_of
from bitsweep.results import ROUNDED_ON_FEWER
from tests.quantization.networks import noise_splits

SIZE = 8
MAP = 4 * SIZE**2 * 4


def network() -> nn.Module:
    """The widest place is the sum: what it adds, and what comes of it."""
    torch.manual_seed(0)

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
            self.head = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head((self.first(x) + self.second(x)).mean((2, 3)))

    return Sum().eval()


def test_what_is_kept_of_an_image_is_counted() -> None:
    assert fitting.bytes_kept(trace(network(), input_shape=(3, SIZE, SIZE))) == 3 * MAP


@pytest.mark.parametrize(("room", "used"), [(10**9, 16), (2 * 3 * MAP * 8, 8), (2 * 3 * MAP * 9, 8), (1, 2)])
def test_as_many_images_are_taken_as_fit(room: int, used: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "BYTES", room)
    graph, images = trace(network(), input_shape=(3, SIZE, SIZE)), torch.randn(16, 3, SIZE, SIZE)
    fitted = fitting.fitting(graph, images.split(2))
    assert sum(map(len, fitted)) == used
    assert torch.equal(fitted[0], images[:2]) and (used == 2 or torch.equal(fitted[-1], images[-2:]))
    parameters = parameters_of(graph)
    for given in layerwise(graph, layer_units(graph), fitted, originals=parameters):
        kept = {id(x): x.nbytes for each in (given.inputs, given.rounded_inputs) for xs in each.values() for x in xs}
        assert sum(kept.values()) <= max(room, 2 * 3 * MAP * 2)


def test_a_method_that_rounds_on_fewer_images_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "BYTES", 2 * 3 * MAP * 8)
    weights = Grid(bits=4, signed=True, symmetric=True, per_channel=True)
    scheme = Scheme(weights=weights, activations="float32", arithmetic="simulated")
    made = Gptq(name="gptq", calibration_images=32, calibration_batch=4).compress(
        network(), noise_splits(SIZE), input_shape=(3, SIZE, SIZE), scheme=scheme, seed=0
    )
    (table,) = (table for table in made.tables if table.name == ROUNDED_ON_FEWER)
    assert [row[1] for row in table.rows] == [32, 8]
