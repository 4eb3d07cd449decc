"""Three-sigma quantization against its formulas, step by step."""

from typing import Any

import pytest
import torch

from bitsweep.config.precision import Grid, Precision, Scheme
from bitsweep.data.preprocessing import preprocess
from bitsweep.methods.three_sigma import ThreeSigma
from bitsweep.models.plain import PlainNetwork
from bitsweep.quantization.integers import IntegerInterpreter
from bitsweep.results import Compression, Splits
from tests.methods.test_ptq import Block
from tests.quantization.networks import noise_splits

pytestmark = pytest.mark.slow

SIZE = 16
S8 = Grid(bits=8, signed=True, symmetric=True)
SCHEME = Scheme(weights=S8, activations=S8, arithmetic="simulated")


@pytest.fixture(scope="module")
def splits() -> Splits:
    return noise_splits(SIZE)


def lenet() -> torch.nn.Module:
    torch.manual_seed(0)
    network = PlainNetwork(name="lenet", image_size=SIZE, filters=(6, 16), kernel=5, hidden=(120, 84)).build(4)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def compressed(network: torch.nn.Module, splits: Splits, **knobs: Any) -> Compression:
    method = ThreeSigma(name="three_sigma", calibration_images=64, calibration_batch=16, **knobs)
    return method.compress(network, splits, input_shape=(3, SIZE, SIZE), scheme=SCHEME, seed=0)


def test_weights_are_multiplied_rounded_and_clamped(splits: Splits) -> None:
    """q = clamp(round(W 127 / (3 std)), -127, 127)."""
    stored = compressed(lenet(), splits).program.state_dict
    for name, weight in lenet().state_dict().items():
        if name.endswith("weight"):
            scaled = weight.double() * 127 / (3 * weight.double().std(correction=0))
            codes = stored[f"{name}_codes"]
            # Half a code, and a little for a deviation that is known to four digits.
            assert (codes - scaled.clamp(-127, 127)).abs().max() < 0.52
            assert (codes[scaled > 127] == 127).all() and (codes[scaled < -127] == -127).all()
    assert any((codes.abs() == 127).any() for name, codes in stored.items() if name.endswith("weight_codes"))


def test_activations_are_scaled_by_their_deviation_or_their_peak(splits: Splits) -> None:
    """n = min(127 / (4 std), 127 / max|a|), of the images themselves."""
    program = compressed(lenet(), splits).program
    images = preprocess(
        splits.train.images, input_shape=(3, SIZE, SIZE), mean_C=splits.mean_C, std_C=splits.std_C
    ).double()
    first = next(node for node in program.graph.nodes if "quantize_per_tensor" in str(node.target))
    n = min(127 / (4 * images.std(correction=0)), 127 / images.abs().max())
    assert 1 / first.args[1] == pytest.approx(n.item(), rel=1e-3)
    assert first.args[2:5] == (0, -127, 127)


def test_every_step_is_evaluated_on_the_test_images(splits: Splits) -> None:
    result = compressed(lenet(), splits, stage_images=40)
    (stages,) = result.tables
    assert stages.name == "stages"
    assert stages.columns == ("stage", "top1", "drop_pp", "agreement")
    top1 = {str(row[0]): float(row[1]) for row in stages.rows}
    assert list(top1) == ["before", "weights", "activations", "biases", "integers only"]
    images = preprocess(splits.test.images[:40], input_shape=(3, SIZE, SIZE), mean_C=splits.mean_C, std_C=splits.std_C)
    labels = torch.from_numpy(splits.test.labels[:40])

    def share(logits: torch.Tensor) -> float:
        return (logits.argmax(1) == labels).double().mean().item()

    with torch.no_grad():
        assert top1["before"] == share(lenet()(images))
        assert top1["biases"] == share(result.program.module()(images))
        assert top1["integers only"] == share(IntegerInterpreter(result.program).run(images))
    for _, accuracy, drop_pp, agreement in stages.rows:
        assert drop_pp == pytest.approx(100 * (top1["before"] - float(accuracy)))
        assert 0.8 < float(agreement) <= 1


def test_what_was_not_computed_on_integers_is_listed(splits: Splits) -> None:
    torch.manual_seed(0)
    _, floats = compressed(Block().eval(), splits).tables
    assert floats.name == "float_operations"
    assert {row[1] for row in floats.rows} == {"aten.hardswish.default", "aten.repeat_interleave.self_int"}


@pytest.mark.parametrize(
    ("weights", "activations", "culprit"),
    [
        (S8, S8, None),
        (Grid(bits=4, signed=True, symmetric=True), S8, None),
        (Grid(bits=8, signed=True, symmetric=True, per_channel=True), S8, "s8 per-channel symmetric"),
        (S8, Grid(bits=8, signed=False, symmetric=False), "u8 per-tensor affine"),
        (S8, "float32", "float32"),
        (Grid(bits=16, signed=True, symmetric=True), S8, "s16 per-tensor symmetric"),
    ],
)
def test_other_precisions_are_refused(weights: Any, activations: Any, culprit: str | None) -> None:
    reason = ThreeSigma(name="three_sigma").unsupported(
        Precision(name="some", weights=weights, activations=activations)
    )
    assert (reason is None) == (culprit is None)
    assert culprit is None or f"is not {culprit}: choose precision=int8_symmetric" in str(reason)
