import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from bitsweep.config.method import Method
from bitsweep.config.precision import FLOAT32, Grid, Scheme
from bitsweep.graphs.program import load_program, save_program
from bitsweep.graphs.tracing import Exported
from bitsweep.methods.none import NoCompression
from bitsweep.methods.ptq import PostTrainingQuantization
from bitsweep.methods.qat import QuantizationAwareTraining
from tests.quantization.networks import noise_splits

SIZE = 8
SHAPE = (3, SIZE, SIZE)
CODES = Scheme(
    weights=Grid(bits=8, signed=True, symmetric=True, per_channel=True),
    activations=Grid(bits=8, signed=False, symmetric=False),
    arithmetic="integer",
)
HALF = Scheme(weights="float16", activations="float32", arithmetic="float32")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Hardswish(), nn.Flatten(),
        nn.Linear(144, 4),
    )  # fmt: skip
    made(torch.randn(16, *SHAPE))
    return made.eval()


@pytest.mark.parametrize(
    ("method", "scheme"),
    [
        (PostTrainingQuantization(name="ptq", calibration_images=16), CODES),
        (QuantizationAwareTraining(name="qat", epochs=2, max_steps=4, calibration_images=16), CODES),
        (PostTrainingQuantization(name="ptq"), HALF),
    ],
    ids=["ptq", "qat", "half"],
)
def test_what_starts_from_an_exported_network_is_what_starts_from_the_network(
    method: Method, scheme: Scheme, network: nn.Module, tmp_path: Path
) -> None:
    assert method.takes_exported(scheme)
    splits = noise_splits(SIZE)
    twin = NoCompression(name="none").compress(
        copy.deepcopy(network), splits, input_shape=SHAPE, scheme=FLOAT32, seed=0
    )
    assert twin.normalized == ("1.weight",)
    save_program(twin.program, tmp_path / "program.pt2")
    program = load_program(tmp_path / "program.pt2")
    before = {path: value.clone() for path, value in program.state_dict.items()}
    made = [
        method.compress(start, splits, input_shape=SHAPE, scheme=scheme, seed=0)
        for start in (copy.deepcopy(network), Exported(program, normalized=twin.normalized))
    ]
    assert made[0].layers == made[1].layers
    nodes = [
        [(node.name, node.target, str(node.args)) for node in each.program.graph.nodes if node.op == "call_function"]
        for each in made
    ]
    assert sorted(nodes[0], key=str) == sorted(nodes[1], key=str)
    states = [each.program.state_dict for each in made]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][path]) for path, value in states[0].items())
    assert all(torch.equal(value, program.state_dict[path]) for path, value in before.items())


def test_what_is_trained_in_half_precision_starts_from_the_network() -> None:
    assert not QuantizationAwareTraining(name="qat").takes_exported(HALF)
