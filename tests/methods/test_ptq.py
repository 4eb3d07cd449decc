"""Post-training quantization of a whole network, against the rules and formulas that it follows."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.fx import Node
from trained_networks import Folders, subject

from bitsweep import stats
from bitsweep.backends.torch.backend import Reference
from bitsweep.config.precision import Grid, Scheme
from bitsweep.data.preprocessing import preprocess, preprocessed
from bitsweep.errors import CompressionError
from bitsweep.graphs.program import logits_of
from bitsweep.methods.ptq import PostTrainingQuantization
from bitsweep.quantization.quantizing import ActivationRange, WeightRange
from bitsweep.results import Compression, Splits
from bitsweep.runtime.environment import current_cpu
from tests.conftest import REPOSITORY
from tests.quantization.networks import noise_splits

pytestmark = pytest.mark.slow

SIZE = 16


class Block(torch.nn.Module):
    """Everything that the annotation rules speak of: a hard-swish bottleneck with a gate, a shortcut, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.nn.BatchNorm2d(8)
        self.depthwise = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze, self.expand = torch.nn.Conv2d(8, 4, 1), torch.nn.Conv2d(4, 8, 1)
        self.project = torch.nn.Conv2d(8, 8, 1)
        self.pool, self.drop = torch.nn.MaxPool2d(2), torch.nn.Dropout(0.5)
        self.hidden, self.head = torch.nn.Linear(16, 12), torch.nn.Linear(12, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.hardswish(self.norm(self.stem(images)))
        y = torch.relu(self.depthwise(x))
        gate = torch.nn.functional.hardsigmoid(self.expand(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = torch.relu(x + self.project(y * gate))
        x = torch.cat([x, self.pool(x).repeat_interleave(2, 2).repeat_interleave(2, 3)], 1)
        x = torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.head(self.drop(torch.relu(self.hidden(x))))


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    block = Block()
    block(torch.randn(32, 3, SIZE, SIZE))
    return block.eval()


@pytest.fixture(scope="module")
def splits() -> Splits:
    return noise_splits(SIZE)


def scheme(weight_bits: int = 8, activation_bits: int = 8, **knobs: Any) -> Scheme:
    return Scheme(
        weights=Grid(bits=weight_bits, signed=True, symmetric=True, per_channel=True),
        activations=Grid(bits=activation_bits, signed=activation_bits > 8, symmetric=activation_bits > 8),
        arithmetic="integer",
        **knobs,
    )


def compressed(splits: Splits, wanted: Scheme, **knobs: Any) -> Compression:
    method = PostTrainingQuantization(name="ptq", calibration_images=64, calibration_batch=16, **knobs)
    return method.compress(network(), splits, input_shape=(3, SIZE, SIZE), scheme=wanted, seed=0)


@pytest.mark.parametrize(
    ("weight_bits", "activation_bits", "least_db"), [(16, 16, 65), (8, 16, 35), (8, 8, 25), (7, 8, 20), (4, 8, 4)]
)
@torch.no_grad()
def test_more_bits_are_closer(splits: Splits, weight_bits: int, activation_bits: int, least_db: float) -> None:
    images = preprocess(splits.test.images, input_shape=(3, SIZE, SIZE), mean_C=splits.mean_C, std_C=splits.std_C)
    expected = network()(images).numpy()
    result = compressed(splits, scheme(weight_bits, activation_bits), guard=False)
    noise = expected - logits_of(result.program, [images.numpy()])
    db = 10 * math.log10((expected**2).sum() / (noise**2).sum())
    assert least_db < db < least_db + 30
    assert {layer.weights for layer in result.layers} == {f"s{weight_bits} per-channel symmetric"}


def test_16_bits_of_activations_hold_on_a_pretrained_network(sample_data: Path, tmp_path: Path) -> None:
    """In its stem channels that span 0.09 to 72.6 share a scale, and 8 bits have no codes for the small ones."""
    folders = Folders(data=sample_data, cache=tmp_path, calibration=64, test=120)
    given = subject("mobilenet_v3_small", folders)
    precision = instantiate(OmegaConf.load(REPOSITORY / "conf" / "precision" / "w8a16.yaml"), _convert_="all")
    wanted = Reference(name="reference").scheme(precision, current_cpu())
    assert str(wanted) == "weights s8 per-channel symmetric, activations s16 per-tensor symmetric, simulated arithmetic"
    method = PostTrainingQuantization(name="ptq", calibration_images=64, calibration_batch=16)
    program = method.compress(given.network, given.splits, input_shape=(3, 224, 224), scheme=wanted, seed=0).program
    batches = [
        part.numpy()
        for part in preprocessed(given.splits.test.images, given.splits, input_shape=(3, 224, 224), batch=20)
    ]
    with torch.no_grad():
        expected = np.concatenate([given.network(torch.from_numpy(images)).numpy() for images in batches])
    logits, labels = logits_of(program, batches), given.splits.test.labels
    assert stats.sqnr_db(expected, logits) > 18
    assert abs((logits.argmax(1) == labels).mean() - (expected.argmax(1) == labels).mean()) < 0.03


def quantized(node: Node) -> bool:
    """Whether a value is the dequantization of codes."""
    return "dequantize_per_tensor" in str(node.target)


def test_what_integer_kernels_read_are_codes(splits: Splits) -> None:
    program = compressed(splits, scheme()).program
    layers = 0
    for node in program.graph.nodes:
        name = str(node.target)
        if name in ("aten.conv2d.default", "aten.linear.default"):
            layers += 1
            assert quantized(node.args[0]), node
            assert "dequantize_per_channel" in str(node.args[1].target), node
        elif name in ("aten.add.Tensor", "aten.mul.Tensor", "aten.max_pool2d.default", "aten.hardswish.default"):
            assert all(quantized(source) for source in node.all_input_nodes), node
    assert layers == 7


def test_a_rectifier_runs_with_the_layer_before_it(splits: Splits) -> None:
    """Between a layer and the ReLU that alone reads it there is no pair, and the logits stay float."""
    program = compressed(splits, scheme()).program
    rectifiers = [node for node in program.graph.nodes if str(node.target) == "aten.relu.default"]
    assert len(rectifiers) == 4
    for node in rectifiers:
        assert not quantized(node.args[0])
        assert all("quantize_per_tensor" in str(user.target) for user in node.users)
    (output,) = program.graph.find_nodes(op="output")
    assert [str(node.target) for node in output.all_input_nodes] == ["aten.linear.default"]


def test_what_moves_values_keeps_their_scale(splits: Splits) -> None:
    program = compressed(splits, scheme()).program
    for node in program.graph.nodes:
        if str(node.target) in ("aten.max_pool2d.default", "aten.flatten.using_ints", "aten.cat.default"):
            before = {source.args[1:3] for source in node.all_input_nodes}
            after = {user.args[1:3] for user in node.users}
            assert before == after, node
            assert len(before) == 1, node


def test_ranges_are_those_of_the_calibration_images(splits: Splits) -> None:
    """The first activation is the images themselves: with min-max their codes span exactly their values."""
    program = compressed(splits, scheme(), activation_range="minmax").program
    images = preprocess(splits.train.images, input_shape=(3, SIZE, SIZE), mean_C=splits.mean_C, std_C=splits.std_C)
    first = next(node for node in program.graph.nodes if "quantize_per_tensor" in str(node.target))
    assert first.args[1] == pytest.approx((images.max() - images.min()).item() / 255, rel=1e-6)
    assert first.args[2] == round(-images.min().item() / first.args[1])


@pytest.mark.parametrize("knob", ["activation_range", "weight_range"])
@pytest.mark.parametrize("choice", get_args(ActivationRange))
@torch.no_grad()
def test_every_choice_of_ranges_works(splits: Splits, knob: str, choice: str) -> None:
    if knob == "weight_range" and choice not in get_args(WeightRange):
        pytest.skip("weights come in no batches")
    images = preprocess(splits.test.images, input_shape=(3, SIZE, SIZE), mean_C=splits.mean_C, std_C=splits.std_C)
    expected = network()(images).numpy()
    noise = expected - logits_of(compressed(splits, scheme(), **{knob: choice}).program, [images.numpy()])
    # Laplace's tails are long, Gauss's short: with the distribution that values do not have, ranges are off.
    assert (expected**2).sum() / (noise**2).sum() > 10


def test_the_same_seed_is_the_same_program(splits: Splits) -> None:
    images = np.zeros((1, 3, SIZE, SIZE), np.float32)
    one, other = (logits_of(compressed(splits, scheme()).program, [images]) for _ in range(2))
    assert np.array_equal(one, other)


@pytest.mark.parametrize(("weights", "bits"), [("float16", 16), ("bfloat16", 16)])
@pytest.mark.parametrize("computed", [True, False])
def test_half_precision(splits: Splits, weights: str, bits: int, computed: bool) -> None:
    wanted = Scheme(weights=weights, activations=weights if computed else "float32", arithmetic="float32")
    result = compressed(splits, wanted)
    assert all(layer.stored_bits == bits * layer.parameters for layer in result.layers)
    assert {layer.activations for layer in result.layers} == {weights if computed else "float32"}


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_weights_that_are_not_finite_are_refused(splits: Splits, value: float) -> None:
    broken = network()
    with torch.no_grad():
        broken.head.weight[0, 0] = value
    with pytest.raises(CompressionError, match="not finite"):
        PostTrainingQuantization(name="ptq").compress(
            broken, splits, input_shape=(3, SIZE, SIZE), scheme=scheme(), seed=0
        )


def test_how_many_images_it_is_calibrated_on() -> None:
    """As many as there are, and none where nothing is on a grid."""
    integers = SimpleNamespace(weights=Grid(bits=8, signed=True, symmetric=True, per_channel=True))
    made = PostTrainingQuantization(name="ptq", calibration_images=100_000)
    assert made.calibrated_on(200, integers) == 200
    assert replace(made, calibration_images=1).calibrated_on(200, integers) == 1
    assert made.calibrated_on(200, SimpleNamespace(weights="float16")) == 0
