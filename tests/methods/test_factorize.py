"""Factorisation of whole networks: what becomes of their layers, and what is recorded about it."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bitsweep.config.precision import FLOAT32, Precision, Scheme
from bitsweep.errors import CompressionError, ConfigError
from bitsweep.graphs.program import load_program, logits_of, save_program
from bitsweep.lowering.onnx.export import export_onnx
from bitsweep.results import Compression, Splits
from tests.methods.test_rounding import UNSIGNED, compressed, method, network, noise, scheme
from tests.quantization.guard.test_search import Separable, rescale_stem
from tests.quantization.networks import SIZE, noise_splits

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {"iterations": 5, "ratio": 0.9}


@pytest.fixture(scope="module")
def splits() -> Splits:
    return noise_splits(SIZE)


def factorized(splits: Splits, wanted: Scheme, model: nn.Module | None = None, **knobs: Any) -> Compression:
    made = method("factorize", **SMALL | knobs)
    return compressed(made, model or network(), splits, wanted)


def test_what_becomes_of_each_layer(splits: Splits) -> None:
    result = factorized(splits, scheme(4))
    assert {record.name: record.became for record in result.layers} == {
        "stem": "",
        "grouped": "",
        "depthwise": "",
        "point": "1x1 8 to 3 - 1x1 3 to 8",
        "down": "1x1 8 to 26 - 3x3 on each of 26 - 1x1 26 to 12",
        "hidden": "12 to 4 - 4 to 10",
        "head": "",
    }
    assert {record.name: record.reason for record in result.layers if record.reason} == {
        "grouped": "has 2 groups; only layers with one are factorised",
        "depthwise": "has 8 groups; only layers with one are factorised",
    }
    assert {record.weights for record in result.layers} == {"s4 per-channel symmetric"}


def test_records(splits: Splits) -> None:
    result = factorized(splits, scheme(4))
    (table,) = result.tables
    assert table.columns == (
        "layer", "rank", "weights", "factor_weights", "error_float", "bits", "error_svd_minmax", "error_svd_mse",
        "error_admm",
    )  # fmt: skip
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(rows) == ["point", "down", "hidden"]
    records = {record.name: record for record in result.layers}
    curves = {curve.name: curve for curve in result.curves}
    for name, row in rows.items():
        # The program holds what was found: codes with the error and the size that the table names.
        assert 10 ** (-records[name].sqnr_db / 20) == pytest.approx(row["error_admm"], rel=1e-4)  # type: ignore[operator]
        assert records[name].stored_bits == row["bits"] + 32 * records[name].parameters - 32 * row["weights"]
        curve = curves[f"relative_error.{name}"]
        assert min(curve.values) == pytest.approx(row["error_admm"], rel=1e-4)
        assert curve.values[0] == pytest.approx(row["error_svd_mse"], rel=1e-4)
        assert (curve.step, len(curve.values)) == ("sweep", 6)
        assert row["factor_weights"] < row["weights"]
    assert rows["down"]["error_admm"] < min(rows["down"]["error_svd_mse"], rows["down"]["error_svd_minmax"])


@pytest.mark.parametrize("solver", ["svd_minmax", "svd_mse"])
def test_rounding_factors_to_the_nearest_codes(solver: str, splits: Splits) -> None:
    result = factorized(splits, scheme(3), solver=solver)
    (table,) = result.tables
    assert result.curves == ()
    assert "error_admm" not in table.columns
    records = {record.name: record for record in result.layers}
    for row in table.rows:
        error = row[table.columns.index(f"error_{solver}")]
        assert 10 ** (-records[str(row[0])].sqnr_db / 20) == pytest.approx(error, rel=1e-4)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("weights", "activations", "bits"),
    [("float32", "float32", 32), ("float16", "float32", 16), ("float16", "float16", 16), ("bfloat16", "float32", 16)],
)
def test_floats(weights: Any, activations: Any, bits: int, splits: Splits) -> None:
    wanted = Scheme(weights=weights, activations=activations, arithmetic="float32")
    result = factorized(splits, wanted)
    records = {record.name: record for record in result.layers}
    assert {(record.weights, record.activations) for record in result.layers} == {(weights, activations)}
    assert records["hidden"].stored_bits == bits * (4 * (12 + 10) + 10)
    assert records["stem"].stored_bits == bits * records["stem"].parameters
    (table,) = result.tables
    assert table.columns[-1] == "error_float"
    nearly_all = factorized(splits, wanted, ratio=0.99, float_iterations=200)
    assert noise(network(), nearly_all, splits) < noise(network(), result, splits) < 0.8


def test_a_network_of_low_rank_stays_what_it_is(splits: Splits) -> None:
    torch.manual_seed(0)
    left, right = torch.randn(24, 3), torch.randn(3, 192)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 24), nn.ReLU(), nn.Linear(24, 4)).eval()
    with torch.no_grad():
        model[1].weight.copy_(left @ right)  # type: ignore[union-attr, operator]
    result = factorized(splits, FLOAT32, model, keep_first=False, rank_by="energy", energy=0.9999)
    assert [record.became for record in result.layers] == ["192 to 3 - 3 to 24", ""]
    assert noise(model, result, splits) < 1e-4


def test_layers_to_keep(splits: Splits) -> None:
    def became(**knobs: Any) -> list[str]:
        return [record.name for record in factorized(splits, FLOAT32, **knobs).layers if record.became]

    assert became(keep=("down", "point")) == ["hidden"]
    assert became(keep_first=False, keep_last=False) == ["stem", "point", "down", "hidden", "head"]
    with pytest.raises(ConfigError, match=r"method\.keep=dwn: no such layer; choose from stem, grouped, .*, head$"):
        became(keep=("dwn",))


def test_a_rank_that_saves_nothing(splits: Splits) -> None:
    result = factorized(splits, FLOAT32, rank_by="energy", energy=0.85)
    records = {record.name: record for record in result.layers}
    assert records["point"].became == ""
    assert records["point"].reason == "has 64 weights, and factors of rank 4 have 64"
    assert records["point"].sqnr_db is None
    message = r"method=factorize makes no layer smaller \(grouped has 2 groups; .*\): lower method.energy"
    with pytest.raises(CompressionError, match=message):
        factorized(splits, FLOAT32, rank_by="energy", energy=0.9999)
    names = ("stem", "grouped", "depthwise", "point", "down", "hidden", "head")
    with pytest.raises(CompressionError, match=r"\(all of them are kept\)"):
        factorized(splits, FLOAT32, keep=names)


@torch.no_grad()
def test_biases_are_corrected_towards_the_network_in_one(splits: Splits) -> None:
    def means(model: nn.Module | None, result: Compression | None) -> np.ndarray[Any, Any]:
        images = torch.from_numpy(splits.train.images).permute(0, 3, 1, 2).float()
        images = ((images / 255 - 0.5) / 0.25)[:32]
        if result is not None:
            return logits_of(result.program, [images.numpy()]).mean(0)
        assert model is not None
        return model(images).numpy().mean(0)

    # The images on which biases are corrected: all of them.
    knobs = {"calibration_images": 64, "keep_last": False}
    expected = means(network(), None)
    off = {
        correct: np.abs(means(None, factorized(splits, FLOAT32, correct_bias=correct, **knobs)) - expected).max()
        for correct in (True, False)
    }
    assert off[True] < 0.3 * off[False]


def test_degenerate_networks(splits: Splits) -> None:
    """A dead channel, a layer with one input, one with one output, and an activation that never changes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 1, 1), nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4),
    )  # fmt: skip
    with torch.no_grad():
        model[2].weight[1] = 0  # type: ignore[index, operator]
        model[2].bias[1] = 0.5  # type: ignore[index, operator]
        model[2].weight[2], model[2].bias[2] = 0, -1  # type: ignore[index, operator]
    result = factorized(splits, scheme(8, activations=UNSIGNED), model.eval(), ratio=0.95)
    assert [record.became for record in result.layers] == [
        "", "1x1 8 to 21 - 3x3 on each of 21 - 1x1 21 to 8", "", "", "",
    ]  # fmt: skip
    assert [record.reason for record in result.layers[2:4]] == [
        "has 8 weights, and factors of rank 1 have 9",
        "has 2 weights, and factors of rank 1 have 3",
    ]
    assert noise(model, result, splits) < 0.5


def test_weights_that_are_not_finite(splits: Splits) -> None:
    model = network()
    with torch.no_grad():
        model.hidden.weight[0, 0] = float("inf")  # type: ignore[union-attr, index, operator]
    with pytest.raises(CompressionError, match=r"hidden\.weight holds values that are not finite"):
        factorized(splits, scheme(4), model)


def test_activations_between_the_layers_of_a_chain_are_codes(splits: Splits) -> None:
    program = factorized(splits, scheme(8, activations=UNSIGNED)).program
    layers = [node for node in program.graph.nodes if str(node.target).startswith(("aten.conv2d", "aten.linear"))]
    assert len(layers) == 7 + 1 + 2 + 1
    for node in layers:
        assert "dequantize_per_tensor" in str(node.args[0].target), node
        assert "dequantize_per_channel" in str(node.args[1].target), node


@pytest.mark.slow
def test_integer_kernels_run_it(splits: Splits, tmp_path: Path) -> None:
    from bitsweep.backends.onnxruntime.backend import OnnxRuntime

    program = factorized(splits, scheme(7, activations=UNSIGNED)).program
    export_onnx(program, tmp_path / "model.onnx")
    images = np.random.default_rng(0).standard_normal((8, 3, SIZE, SIZE)).astype(np.float32)
    backend = OnnxRuntime(name="onnxruntime")
    kernels = [kernel for kernel in backend.profile(tmp_path, images, threads=1) if kernel.macs]
    assert len(kernels) == 11
    assert all(kernel.integer for kernel in kernels)
    expected = logits_of(program, [images])
    np.testing.assert_allclose(backend.load(tmp_path, threads=1)(images), expected, atol=0.05 * np.abs(expected).max())


def test_a_program_is_stored_packed(splits: Splits, tmp_path: Path) -> None:
    program = factorized(splits, scheme(2, symmetric=False)).program
    save_program(program, tmp_path / "program.pt2")
    images = np.random.default_rng(0).standard_normal((4, 3, SIZE, SIZE)).astype(np.float32)
    again = logits_of(load_program(tmp_path / "program.pt2"), [images])
    np.testing.assert_array_equal(again, logits_of(program, [images]))


def test_factors_are_trained_from_their_codes(splits: Splits) -> None:
    """Learning the noise images by heart: the loss falls, and the records tell of chains and curves as before."""
    before = factorized(splits, scheme(4, activations=UNSIGNED))
    result = factorized(splits, scheme(4, activations=UNSIGNED), epochs=6, lr=0.01, batch_size=16)
    assert [record.became for record in result.layers] == [record.became for record in before.layers]
    assert {record.weights for record in result.layers} == {"s4 per-channel symmetric"}
    curves = {curve.name: curve.values for curve in result.curves}
    assert curves["train_loss"][-1] < curves["train_loss"][0]
    assert "relative_error.hidden" in curves
    precision = Precision(name="fp16", weights="float16", activations="float16")
    assert "method.epochs=0" in str(method("factorize", epochs=1).unsupported(precision))


def test_the_guard_keeps_the_activations_of_a_network_whose_channels_are_unlike(splits: Splits) -> None:
    hard = Separable(nn.ReLU)
    rescale_stem(hard)
    knobs: dict[str, Any] = {"wanted": scheme(8, activations=UNSIGNED), "keep": ("dense",)}
    plain = noise(Separable(nn.ReLU), factorized(splits, model=Separable(nn.ReLU), guard=False, **knobs), splits)
    mended, ruined = (factorized(splits, model=copy.deepcopy(hard), guard=guard, **knobs) for guard in (True, False))
    assert noise(hard, mended, splits) < 1.1 * plain < 0.5 * noise(hard, ruined, splits)
    assert [table.name for table in mended.tables] == ["noise", "channels", "guard", "factorization"]
    assert {record.name for record in mended.layers if record.remedy} >= {"stem", "depthwise"}
