"""Dynamic quantization of whole networks: what it covers, what it leaves, and that an engine runs it on integers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from bitsweep import stats
from bitsweep.backends.onnxruntime.backend import OnnxRuntime
from bitsweep.config.precision import Grid, Precision, Scheme
from bitsweep.config.schemes import reduce_range
from bitsweep.errors import CompressionError
from bitsweep.graphs.program import logits_of
from bitsweep.methods.dynamic import DynamicQuantization
from bitsweep.results import Compression, Shape, Splits
from bitsweep.runtime.environment import current_cpu
from tests.quantization.networks import SIZE, Mixed, noise_splits

pytestmark = pytest.mark.slow

S8 = Grid(bits=8, signed=True, symmetric=True, per_channel=True)
U8 = Grid(bits=8, signed=False, symmetric=False)
INT8 = Precision(name="int8", weights=S8, activations=U8)
SCHEME = Scheme(weights=S8, activations=U8, arithmetic="simulated")


@pytest.fixture(scope="module")
def splits() -> Splits:
    return noise_splits(SIZE)


def network() -> nn.Module:
    torch.manual_seed(0)
    made = Mixed()
    made(torch.randn(16, 3, SIZE, SIZE))
    return made.eval()


def compressed(
    model: nn.Module, splits: Splits, *, scheme: Scheme = SCHEME, input_shape: Shape = (3, SIZE, SIZE), **knobs: Any
) -> Compression:
    method = DynamicQuantization(name="dynamic", **knobs)
    return method.compress(model, splits, input_shape=input_shape, scheme=scheme, seed=0)


@torch.no_grad()
def test_linear_layers_alone_are_on_a_grid(splits: Splits) -> None:
    result = compressed(network(), splits)
    for note in result.layers:
        linear = note.name in ("hidden", "head")
        assert note.weights == ("s8 per-channel symmetric" if linear else "float32")
        assert note.activations == ("u8 per-tensor affine at run time" if linear else "float32")
        assert note.reason == ("" if linear else "only linear layers are quantized at run time")
        assert (note.stored_bits == 32 * note.parameters) != linear
    for name in ("hidden", "head"):
        weight = network().state_dict()[f"{name}.weight"]
        scale = weight.abs().amax(1, keepdim=True) / 127
        assert torch.equal(result.program.state_dict[f"{name}.weight_codes"], (weight / scale).round().to(torch.int8))


@torch.no_grad()
def test_logits_stay_close(splits: Splits) -> None:
    images = torch.randn(64, 3, SIZE, SIZE)
    expected = network()(images).numpy()
    errors = []
    for bits, knobs in ((8, {}), (4, {"weight_range": "mse"}), (2, {})):
        scheme = Scheme(
            weights=Grid(bits=bits, signed=True, symmetric=True, per_channel=True),
            activations=U8,
            arithmetic="simulated",
        )
        logits = logits_of(compressed(network(), splits, scheme=scheme, **knobs).program, [images.numpy()])
        errors.append(np.linalg.norm(logits - expected) / np.linalg.norm(expected))
    assert errors[0] < 0.02
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("batch", [1, 7])
def test_an_engine_runs_it_on_integers(batch: int, splits: Splits, tmp_path: Path) -> None:
    """Codes agree but for float32's rounding; 7-bit weights keep the products of CPUs without VNNI from saturating."""
    backend = OnnxRuntime(name="onnxruntime")
    result = compressed(network(), splits, scheme=reduce_range(INT8, current_cpu()))
    backend.lower(result.program, tmp_path)
    images = np.random.default_rng(batch).standard_normal((batch, 3, SIZE, SIZE)).astype(np.float32)
    assert stats.sqnr_db(logits_of(result.program, [images]), backend.load(tmp_path, threads=1)(images)) > 45
    kernels = backend.profile(tmp_path, images, threads=1)
    integer = {kernel.op: kernel.macs for kernel in kernels if kernel.integer and kernel.macs}
    assert integer.keys() == {"DynamicQuantizeMatMul"}
    assert sum(kernel.macs for kernel in kernels if kernel.integer) == batch * (12 * 10 + 10 * 4)


def test_what_is_covered_is_told(splits: Splits) -> None:
    result = compressed(network(), splits)
    (table,) = result.tables
    assert table.name == "coverage"
    (convolutions, convolution_count, *left), (linears, linear_count, *covered) = table.rows
    assert (convolutions, convolution_count) == ("conv2d, float32", 5)
    assert (linears, linear_count) == ("linear, u8 per-tensor affine at run time", 2)
    parameters = {note.name: note.parameters for note in result.layers}
    assert covered[0] == (parameters["hidden"] + parameters["head"]) / sum(parameters.values())
    per_pixel = 8 * 27 + 8 * 36 + 8 * 9 + 8 * 8
    assert covered[1] == pytest.approx(160 / (160 + SIZE * SIZE * per_pixel + 9 * 12 * 72))
    assert [one + other for one, other in zip(left, covered, strict=True)] == pytest.approx([1, 1])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "left"), [("resnet50", 0.92), ("alexnet", 0.04), ("vgg16", 0.11)])
def test_the_known_shares_of_parameters_left_in_float(name: str, left: float, splits: Splits) -> None:
    with torch.device("meta"):
        made = torchvision.models.get_model(name, weights=None)
    made = made.to_empty(device="cpu").eval()
    with torch.no_grad():
        for value in made.state_dict().values():
            value.zero_()
    (table,) = compressed(made, splits, input_shape=(3, 64, 64)).tables
    shares = {str(row[0]): float(row[2]) for row in table.rows}
    assert shares["conv2d, float32"] == pytest.approx(left, abs=0.005)


def test_a_network_without_linear_layers_is_refused(splits: Splits) -> None:
    convolutional = nn.Sequential(nn.Conv2d(3, 4, SIZE), nn.Flatten())
    with pytest.raises(CompressionError, match="linear layers, of which the network has none; choose method=ptq"):
        compressed(convolutional.eval(), splits)


@pytest.mark.parametrize(
    ("weights", "activations", "allowed"),
    [
        (S8, U8, True),
        (Grid(bits=3, signed=True, symmetric=False), U8, True),
        ("float32", "float32", False),
        (Grid(bits=16, signed=True, symmetric=True), U8, False),
        (S8, Grid(bits=8, signed=True, symmetric=True), False),
        (S8, "float32", False),
    ],
)
def test_other_precisions_are_refused(weights: Any, activations: Any, allowed: bool) -> None:
    reason = DynamicQuantization(name="dynamic").unsupported(
        Precision(name="some", weights=weights, activations=activations)
    )
    assert (reason is None) == allowed
    assert allowed or "choose precision=int8" in str(reason)
