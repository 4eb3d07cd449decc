from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto
from torch.nn import functional

from bitsweep.errors import CompressionError
from bitsweep.onnx_export import LARGEST_BIAS_CODE, averaging_matrix, bias_as_codes, export_onnx

GENERATOR = np.random.default_rng(0)


class Apply(torch.nn.Module):
    """A function as a network."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.function(images)


def _export(network: torch.nn.Module, images: np.ndarray, path: Path) -> onnx.ModelProto:
    dynamic = ({0: torch.export.Dim("some_batch", min=1)},)
    with torch.no_grad():
        program = torch.export.export(network.eval(), (torch.from_numpy(images),), dynamic_shapes=dynamic)
    export_onnx(program, path)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    return model


def _run(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images})[0]


@pytest.mark.parametrize(
    ("size", "output", "operations"),
    [
        ((6, 5), (1, 1), {"GlobalAveragePool": 1}),
        ((6, 6), (6, 6), {"Identity": 1}),
        ((6, 8), (3, 2), {"AveragePool": 1}),
        ((1, 2), (6, 6), {"Resize": 1}),
        ((7, 5), (3, 4), {"MatMul": 2}),
        ((4, 6), (6, 4), {"MatMul": 2}),
    ],
)
def test_adaptive_averages(size: tuple[int, int], output: tuple[int, int], operations: dict, tmp_path: Path) -> None:
    images = GENERATOR.standard_normal((2, 3, *size)).astype(np.float32)
    network = Apply(lambda x: functional.adaptive_avg_pool2d(x, output))
    model = _export(network, images, tmp_path / "model.onnx")
    assert Counter(node.op_type for node in model.graph.node) == operations
    expected = network(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(_run(tmp_path / "model.onnx", images), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("count", range(1, 9))
def test_averaging_matrix(size: int, count: int) -> None:
    expected = functional.adaptive_avg_pool1d(torch.eye(size), count).T.numpy()
    np.testing.assert_allclose(averaging_matrix(size, count), expected, rtol=1e-6)


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dim", [(2, 3), (-1, -2), (1,), (1, 2, 3)])
def test_means(dim: tuple[int, ...], keepdim: bool, tmp_path: Path) -> None:
    images = GENERATOR.standard_normal((2, 3, 4, 5)).astype(np.float32)
    model = _export(Apply(lambda x: x.mean(dim, keepdim=keepdim)), images, tmp_path / "model.onnx")
    pooled = "GlobalAveragePool" in {node.op_type for node in model.graph.node}
    assert pooled == (len(dim) == 2)
    expected = images.mean(dim, keepdims=keepdim)
    np.testing.assert_allclose(_run(tmp_path / "model.onnx", images), expected, rtol=1e-5, atol=1e-6)


def test_a_file_is_lean_and_the_same_every_time(tmp_path: Path) -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 5)
    )
    images = np.zeros((2, 3, 8, 8), np.float32)
    model = _export(network, images, tmp_path / "model.onnx")
    _export(network, images, tmp_path / "again.onnx")
    data = (tmp_path / "model.onnx").read_bytes()
    assert data == (tmp_path / "again.onnx").read_bytes()
    assert b"pkg." not in data
    assert __file__.encode() not in data
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu", "Reshape", "Gemm"]
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


class Half(torch.nn.Module):
    """A layer whose parameters are stored as halves."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(5, 3 * 4 * 4).to(dtype))
        self.register_buffer("bias", torch.ones(5).to(dtype))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return functional.linear(images.flatten(1), self.weight.float(), self.bias.float())


@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.float16, TensorProto.FLOAT16), (torch.bfloat16, TensorProto.BFLOAT16)]
)
def test_halves_stay_halves(dtype: torch.dtype, kind: int, tmp_path: Path) -> None:
    model = _export(Half(dtype), np.ones((2, 3, 4, 4), np.float32), tmp_path / "model.onnx")
    stored = [tensor.data_type for tensor in model.graph.initializer if tensor.data_type != TensorProto.INT64]
    assert stored == [kind, kind]
    np.testing.assert_array_equal(_run(tmp_path / "model.onnx", np.ones((1, 3, 4, 4), np.float32)), np.full((1, 5), 49))


def test_what_onnx_cannot_express_is_named(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="bessel_j0"):
        _export(Apply(torch.special.bessel_j0), np.ones((2, 3, 4, 4), np.float32), tmp_path / "model.onnx")


# --------------------------------------------------------------------------- biases


@given(
    bias=st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3),
    x_scale=st.floats(2**-13, 1, width=32),
    per_channel=st.booleans(),
    middle=st.sampled_from([0, 3]),
    magnitude=st.sampled_from([1e-2, 1e-6, 1e-12]),
)
def test_bias_codes(bias: list[float], x_scale: float, per_channel: bool, middle: int, magnitude: float) -> None:
    values = np.array(bias, np.float32)
    codes = np.array([[-60, 3], [4, 60], [0, 1]], np.int8)
    scale = (np.array([1.0, 2.0, 3.0]) * magnitude).astype(np.float32) if per_channel else np.float32(magnitude)[...]
    zero_point = np.full(scale.shape, middle, np.int8)
    bias_codes, new_codes, new_scale = bias_as_codes(
        values, x_scale=x_scale, codes=codes, scale=np.asarray(scale), zero_point=zero_point
    )
    assert bias_codes.dtype == np.int32
    assert new_codes.dtype == codes.dtype
    assert new_scale.shape == np.shape(scale)
    assert np.abs(bias_codes.astype(np.int64)).max() <= LARGEST_BIAS_CODE * (1 + 1e-6)
    step = np.float64(x_scale) * np.broadcast_to(new_scale, 3)
    assert (np.abs(bias_codes * step - values) <= 0.5001 * step).all()
    before = (codes - middle) * np.broadcast_to(scale, 3).astype(np.float64)[:, None]
    after = (new_codes.astype(np.int32) - middle) * np.broadcast_to(new_scale, 3).astype(np.float64)[:, None]
    assert (np.abs(after - before) <= 0.5001 * np.broadcast_to(new_scale, 3)[:, None]).all()


def test_ordinary_weights_are_left_alone() -> None:
    codes, scale = np.array([[1, 2]], np.int8), np.array([0.1], np.float32)
    bias_codes, same_codes, same_scale = bias_as_codes(
        np.array([0.5], np.float32), x_scale=0.5, codes=codes, scale=scale, zero_point=np.zeros(1, np.int8)
    )
    assert bias_codes.tolist() == [10]
    np.testing.assert_array_equal(same_codes, codes)
    np.testing.assert_array_equal(same_scale, scale)
