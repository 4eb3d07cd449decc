from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch.nn import functional

from bitsweep.errors import CompressionError
from bitsweep.graphs.ops import quantized
from bitsweep.lowering.onnx.export import export_onnx
from bitsweep.lowering.onnx.operators import averaging_matrix

GENERATOR = np.random.default_rng(0)


class Apply(torch.nn.Module):
    """A function as a network."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.function(images)


def _export(network: torch.nn.Module, images: np.ndarray, path: Path, **options: Any) -> onnx.ModelProto:
    dynamic = ({0: torch.export.Dim("some_batch", min=1)},)
    with torch.no_grad():
        program = torch.export.export(network.eval(), (torch.from_numpy(images),), dynamic_shapes=dynamic)
    export_onnx(program, path, **options)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    return model


def _run(path: Path, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    # Else signed codes become unsigned ones on x86, and at the end of a network it gets their type wrong.
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
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


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dims", "operations"), [(1, {"Gemm"}), (2, {"MatMul"})])
def test_linear_layers(dims: int, operations: set[str], bias: bool, tmp_path: Path) -> None:
    """As one operation; what is not flat has its weights transposed, and its bias added, in the file."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(4 * 5 * 3 if dims == 1 else 20, 7, bias=bias)
    images = GENERATOR.standard_normal((2, 3, 4, 5)).astype(np.float32)
    network = Apply(lambda x: layer(x.flatten(dims)))
    network.layer = layer
    model = _export(network, images, tmp_path / "model.onnx")
    added = {"Add"} if bias and dims == 2 else set()
    assert {node.op_type for node in model.graph.node} == {"Reshape"} | operations | added
    expected = network(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(_run(tmp_path / "model.onnx", images), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
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
@pytest.mark.slow
def test_halves_stay_halves(dtype: torch.dtype, kind: int, tmp_path: Path) -> None:
    model = _export(Half(dtype), np.ones((2, 3, 4, 4), np.float32), tmp_path / "model.onnx")
    stored = [tensor.data_type for tensor in model.graph.initializer if tensor.data_type != TensorProto.INT64]
    assert stored == [kind, kind]
    np.testing.assert_array_equal(_run(tmp_path / "model.onnx", np.ones((1, 3, 4, 4), np.float32)), np.full((1, 5), 49))


class CodedBias(torch.nn.Module):
    """A convolution whose bias is stored as 32-bit codes, with one scale a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(5, 3, 1, 1))
        self.register_buffer("codes", torch.tensor([3, -70000, 0, 2**24, 1], dtype=torch.int32))
        self.register_buffer("scales", torch.tensor([0.5, 0.25, 1.0, 2.0**-20, 4.0]))
        self.register_buffer("zeros", torch.zeros(5, dtype=torch.int32))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        limits = -(2**31), 2**31 - 1, torch.int32
        bias = quantized.dequantize_per_channel(self.codes, self.scales, self.zeros, 0, *limits)
        return functional.conv2d(images, self.weight, bias).flatten(1)


@pytest.mark.parametrize("codes", [True, False])
def test_biases_are_codes_or_the_values_that_these_mean(codes: bool, tmp_path: Path) -> None:
    images = np.ones((2, 3, 1, 1), np.float32)
    model = _export(CodedBias(), images, tmp_path / "model.onnx", codes_of_biases=codes)
    assert ("DequantizeLinear" in {node.op_type for node in model.graph.node}) == codes
    assert (TensorProto.INT32 in {tensor.data_type for tensor in model.graph.initializer}) == codes
    np.testing.assert_array_equal(_run(tmp_path / "model.onnx", images)[0], [4.5, -17497, 3, 19, 7])


class CodedWeight(torch.nn.Module):
    """A layer that is used twice, whose weights are stored as codes of one byte."""

    def __init__(self, lo: int, hi: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.from_numpy(GENERATOR.permutation(np.arange(48) % (hi - lo + 1) + lo)))
        self.codes = self.codes.to(torch.int8).reshape(4, 12)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        weight = quantized.dequantize_per_tensor(self.codes, 0.25, 0, -128, 127, torch.int8)
        x = images.flatten(1)
        return functional.linear(x, weight) - functional.linear(x + 1, weight)


@pytest.mark.parametrize(
    ("codes", "fewest", "kind"),
    [
        ((-8, 7), 2, TensorProto.INT4),
        ((-8, 7), 8, TensorProto.INT8),
        ((-8, 8), 2, TensorProto.INT8),
        ((-9, 0), 4, TensorProto.INT8),
        ((-2, 1), 2, TensorProto.INT2),
        ((-1, 1), 4, TensorProto.INT4),
        ((-1, 2), 2, TensorProto.INT4),
    ],
)
def test_weights_take_the_narrowest_type(codes: tuple[int, int], fewest: int, kind: int, tmp_path: Path) -> None:
    network, images = CodedWeight(*codes), GENERATOR.random((2, 3, 2, 2), dtype=np.float32)
    model = _export(network, images, tmp_path / "model.onnx", bits_of_weights=fewest)
    (weights,) = (tensor for tensor in model.graph.initializer if list(tensor.dims) == [4, 12])
    assert weights.data_type == kind
    bits = {TensorProto.INT2: 2, TensorProto.INT4: 4, TensorProto.INT8: 8}[kind]
    assert len(weights.raw_data) == 4 * 12 * bits // 8
    np.testing.assert_allclose(
        _run(tmp_path / "model.onnx", images), network(torch.from_numpy(images)), rtol=1e-5, atol=1e-5
    )


class CodedLinear(torch.nn.Module):
    """A linear layer whose weights are codes with a scale for each output, on codes or on floats."""

    def __init__(self, *, reads_codes: bool, bias: bool) -> None:
        super().__init__()
        codes = GENERATOR.integers(-128, 128, (5, 12), dtype=np.int8)
        self.register_buffer("codes", torch.from_numpy(codes))
        self.register_buffer("scales", torch.linspace(0.01, 0.05, 5))
        self.register_buffer("zeros", torch.arange(5) - 2)
        self.register_buffer("bias", torch.arange(5.0) if bias else None)
        self.reads_codes = reads_codes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        grid = 0.02, 100, 0, 255, torch.uint8
        x = quantized.quantize_per_tensor(images.flatten(1), *grid)
        x = quantized.dequantize_per_tensor(x, *grid) if self.reads_codes else images.flatten(1)
        weight = quantized.dequantize_per_channel(self.codes, self.scales, self.zeros, 0, -128, 127, torch.int8)
        return functional.linear(x, weight, self.bias)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("reads_codes", [False, True])
def test_linear_layers_of_codes_as_convolutions(reads_codes: bool, bias: bool, tmp_path: Path) -> None:
    """For any batch; the weights are stored once."""
    network = CodedLinear(reads_codes=reads_codes, bias=bias)
    images = GENERATOR.standard_normal((7, 3, 2, 2)).astype(np.float32)
    model = _export(network, images[:2], tmp_path / "model.onnx", pointwise_linear=True)
    operations = Counter(node.op_type for node in model.graph.node)
    assert (operations["Conv"], operations["Gemm"]) == ((1, 0) if reads_codes else (0, 1))
    assert [list(tensor.dims)[:2] for tensor in model.graph.initializer].count([5, 12]) == 1
    for batch in (1, 7):
        expected = network(torch.from_numpy(images[:batch])).numpy()
        np.testing.assert_allclose(_run(tmp_path / "model.onnx", images[:batch]), expected, rtol=1e-5, atol=1e-5)


class CodedGroups(torch.nn.Module):
    """A grouped convolution whose weights are codes with a scale and a zero point for each output, between codes."""

    def __init__(self, channels: int, outputs: int, groups: int) -> None:
        super().__init__()
        codes = GENERATOR.integers(-100, 100, (outputs, channels // groups, 3, 3), dtype=np.int8)
        self.register_buffer("codes", torch.from_numpy(codes))
        self.register_buffer("scales", torch.linspace(0.001, 0.005, outputs))
        self.register_buffer("zeros", torch.arange(outputs) % 3)
        self.groups = groups

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = _on_grid(images, 1 / 128, torch.int8)
        weight = quantized.dequantize_per_channel(self.codes, self.scales, self.zeros, 0, -128, 127, torch.int8)
        return _on_grid(functional.conv2d(x, weight, padding=1, groups=self.groups).relu(), 0.1, torch.uint8)


@pytest.mark.parametrize(
    ("channels", "outputs", "groups", "left"),
    [
        (64, 64, 16, 2),
        (24, 48, 8, 1),
        (16, 32, 16, 1),
        (80, 80, 10, 5),
        (32, 16, 16, 1),
        (16, 16, 16, 16),
        (80, 80, 2, 2),
    ],
    ids=["narrow", "few", "several outputs each", "by a divisor", "one output each", "depthwise", "wide"],
)
def test_narrow_groups_of_codes_become_fewer(
    channels: int, outputs: int, groups: int, left: int, tmp_path: Path
) -> None:
    network = CodedGroups(channels, outputs, groups)
    images = GENERATOR.standard_normal((2, channels, 5, 5)).astype(np.float32)
    model = _export(network, images, tmp_path / "model.onnx", wide_groups=True)
    (convolution,) = (node for node in model.graph.node if node.op_type == "Conv")
    assert next(each.i for each in convolution.attribute if each.name == "group") == left
    (weights,) = (tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    assert list(weights.dims) == [outputs, channels // left, 3, 3]
    meant = network(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(_run(tmp_path / "model.onnx", images), meant, atol=0.1 + 1e-6)
    assert np.mean(np.abs(_run(tmp_path / "model.onnx", images) - meant) > 1e-6) < 1e-3


class Padded(torch.nn.Module):
    """A strided convolution behind a padding, in floats or with a pair before and after the padding."""

    def __init__(self, pad: tuple[int, ...], value: float = 0.0, mode: str = "constant") -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3 + (len(pad) == 6), 4, 3, stride=2, padding=(1, 0))
        self.pad, self.value, self.mode = pad, value, mode
        self.scales: tuple[float, ...] = ()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.rounded(images, 0)
        x = self.rounded(functional.pad(x, self.pad, self.mode, self.value), 1)
        return self.convolution(x).flatten(1)

    def rounded(self, x: torch.Tensor, place: int) -> torch.Tensor:
        if not self.scales:
            return x
        grid = self.scales[place], 100, 0, 255, torch.uint8
        return quantized.dequantize_per_tensor(quantized.quantize_per_tensor(x, *grid), *grid)


@pytest.mark.parametrize(
    ("pad", "scales", "paddings"),
    [
        ((0, 1, 0, 1), (), 0),
        ((1, 2, 0, 1), (0.03, 0.03), 0),
        ((0, 1, 0, 1), (0.03, 0.047), 1),
        ((0, 1, 0, -1), (), 1),
        ((0, 0, 0, 1, 0, 1), (), 1),
    ],
    ids=["floats", "codes", "other codes", "cropped", "channels"],
)
def test_convolutions_pad_by_themselves(
    pad: tuple[int, ...], scales: tuple[float, ...], paddings: int, tmp_path: Path
) -> None:
    """Zeros that are put around what they read, wherever that changes nothing."""
    network = Padded(pad)
    network.scales = scales
    _assert_pads(network, paddings, tmp_path / "model.onnx")


@pytest.mark.parametrize(("mode", "value"), [("constant", 1.0), ("reflect", 0.0)])
def test_what_is_not_zeros_is_padded_before_the_convolution(mode: str, value: float, tmp_path: Path) -> None:
    _assert_pads(Padded((0, 1, 0, 1), value, mode), 1, tmp_path / "model.onnx")


def _assert_pads(network: torch.nn.Module, paddings: int, path: Path) -> None:
    images = GENERATOR.standard_normal((2, 3, 8, 8)).astype(np.float32)
    model = _export(network, images, path)
    assert sum(node.op_type == "Pad" for node in model.graph.node) == paddings
    expected = network(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(_run(path, images), expected, rtol=1e-4, atol=1e-5)


class Function(torch.nn.Module):
    """A function of images that are rounded to codes of a scale and zero point, whose result is rounded too."""

    def __init__(self, function, *, scale: float, zero_point: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.function, self.dtype = function, dtype
        self.grid = scale, zero_point, torch.iinfo(dtype).min, torch.iinfo(dtype).max, dtype

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = quantized.dequantize_per_tensor(quantized.quantize_per_tensor(images, *self.grid), *self.grid)
        y = self.function(x)
        return quantized.dequantize_per_tensor(quantized.quantize_per_tensor(y, *self.grid), *self.grid).flatten(1)


@pytest.mark.parametrize(("function", "gate"), [(functional.hardswish, "Add"), (functional.silu, "Sigmoid")])
@pytest.mark.parametrize(
    ("scale", "zero_point", "dtype"),
    [(0.05, 100, torch.uint8), (0.01, 100, torch.uint8), (0.05, -30, torch.int8), (0.004, 0, torch.int8)],
)
def test_gates_as_codes(function, gate: str, scale: float, zero_point: int, dtype: torch.dtype, tmp_path: Path) -> None:
    """Rounding the gate adds at most half a code of it, times x, to what rounding the result does."""
    network = Function(function, scale=scale, zero_point=zero_point, dtype=dtype)
    images = 8 * GENERATOR.standard_normal((2, 3, 16, 16)).astype(np.float32)
    expected = network(torch.from_numpy(images)).numpy()
    model = _export(network, images, tmp_path / "model.onnx", codes_of_gates=True)
    operations = Counter(node.op_type for node in model.graph.node)
    assert (operations[gate], operations["Mul"], operations["QuantizeLinear"]) == (1, 1, 3)
    found = _run(tmp_path / "model.onnx", images)
    assert np.abs(found - expected).max() <= 3 / 255 + 1.001 * scale
    assert (found == expected).mean() > 0.8


@pytest.mark.parametrize(("function", "operations"), [("hardswish", ["HardSwish"]), ("silu", ["Sigmoid", "Mul"])])
def test_gates_of_floats_stay_floats(function: str, operations: list[str], tmp_path: Path) -> None:
    images = GENERATOR.standard_normal((2, 3, 4, 4)).astype(np.float32)
    network = Apply(getattr(functional, function))
    model = _export(network, images, tmp_path / "model.onnx", codes_of_gates=True)
    assert [node.op_type for node in model.graph.node] == operations
    np.testing.assert_allclose(
        _run(tmp_path / "model.onnx", images), network(torch.from_numpy(images)).numpy(), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("function", [functional.hardswish, functional.silu, torch.sigmoid])
@pytest.mark.slow
def test_what_only_a_gate_reads_is_dequantized_by_arithmetic(function, tmp_path: Path) -> None:
    """Which gives the same values, to the last bit."""
    network = Function(function, scale=0.05, zero_point=20, dtype=torch.uint8)
    images = 8 * GENERATOR.standard_normal((2, 3, 16, 16)).astype(np.float32)
    model = _export(network, images, tmp_path / "model.onnx", fused_gates=True)
    operations = Counter(node.op_type for node in model.graph.node)
    assert (operations["Cast"], operations["Sub"], operations["DequantizeLinear"]) == (1, 1, 1)
    plain = _export(network, images, tmp_path / "plain.onnx")
    assert "Cast" not in {node.op_type for node in plain.graph.node}
    np.testing.assert_array_equal(_run(tmp_path / "model.onnx", images), _run(tmp_path / "plain.onnx", images))


@pytest.mark.parametrize(
    "function", [lambda x: functional.hardswish(x) + torch.sigmoid(x) * (x + 1), functional.relu], ids=["sums", "relu"]
)
def test_what_others_read_too_is_dequantized_as_ever(function, tmp_path: Path) -> None:
    network = Function(function, scale=0.05, zero_point=20, dtype=torch.uint8)
    model = _export(network, np.ones((2, 3, 4, 4), np.float32), tmp_path / "model.onnx", fused_gates=True)
    operations = Counter(node.op_type for node in model.graph.node)
    assert (operations["Cast"], operations["DequantizeLinear"]) == (0, 2)


@pytest.mark.parametrize("highest", [6.0, 6.35, 9.0])
def test_clamps_from_0_of_signed_codes_work_on_the_codes(highest: float, tmp_path: Path) -> None:
    """Unless codes go beyond the clamp; the scale is 0.05, so that they end at 6.35."""
    network = Function(lambda x: x, scale=0.05, zero_point=0, dtype=torch.int8)
    clamped = Apply(lambda images: network(functional.hardtanh(images, 0.0, highest)))
    rectified = highest >= 6.35
    images = 4 * GENERATOR.standard_normal((2, 3, 16, 16)).astype(np.float32)
    model = _export(clamped, images, tmp_path / "model.onnx")
    operations = [node.op_type for node in model.graph.node]
    assert operations[:2] == (["QuantizeLinear", "Relu"] if rectified else ["Clip", "QuantizeLinear"])
    np.testing.assert_array_equal(_run(tmp_path / "model.onnx", images), clamped(torch.from_numpy(images)).numpy())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize(
    ("window", "convolutions"),
    [
        ({"kernel_size": 2}, 1), ({"kernel_size": (3, 2), "stride": (1, 2)}, 1),
        ({"kernel_size": 3, "stride": 2, "padding": 1}, 1),
        ({"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}, 0),
        ({"kernel_size": 2, "ceil_mode": True}, 0),
    ],
)  # fmt: skip
def test_averages_of_codes_as_convolutions(
    window: dict[str, Any], convolutions: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    network = Apply(lambda x: _on_grid(functional.avg_pool2d(_on_grid(x, 0.01, dtype), **window), 0.00717, dtype))
    images = GENERATOR.standard_normal((2, 3, 7, 7)).astype(np.float32)
    for given, expected in ((network, convolutions), (Apply(lambda x: functional.avg_pool2d(x, **window)), 0)):
        model = _export(given, images, tmp_path / "model.onnx", convolved_averages=True)
        operations = Counter(node.op_type for node in model.graph.node)
        assert (operations["Conv"], operations["AveragePool"]) == (expected, 1 - expected)
        if expected:
            meant = given(torch.from_numpy(images)).numpy()
            np.testing.assert_allclose(_run(tmp_path / "model.onnx", images), meant, atol=1e-6)


def test_what_onnx_cannot_express_is_named(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="bessel_j0"):
        _export(Apply(torch.special.bessel_j0), np.ones((2, 3, 4, 4), np.float32), tmp_path / "model.onnx")


def by_image(images: torch.Tensor) -> torch.Tensor:
    n, c, *_ = images.shape
    filters = functional.adaptive_avg_pool2d(images, 3).reshape(n * c, 1, 3, 3)
    return functional.conv2d(images.flatten(0, 1)[None], filters, groups=n * c).unflatten(1, (n, c))[0]


def test_groups_of_images_are_refused_with_what_takes_them(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match=r"^conv2d .* as many groups as there are images, .*; use backend=torch"):
        _export(Apply(by_image), np.ones((2, 3, 8, 8), np.float32), tmp_path / "model.onnx")


def _on_grid(x: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    limits = torch.iinfo(dtype)
    grid = (scale, 0, limits.min, limits.max, dtype)
    return quantized.dequantize_per_tensor(quantized.quantize_per_tensor(x, *grid), *grid)


@pytest.mark.parametrize(
    "layer",
    [torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(3, 4, 1, bias=False), torch.nn.Linear(3, 4)],
    ids=["convolution", "without bias", "linear"],
)
def test_float_weights_between_codes_stay_float(layer: torch.nn.Module, tmp_path: Path) -> None:
    """Eight bits on one grid do not hold them: the largest ones see zeros only."""
    network = torch.nn.Sequential(
        Apply(lambda x: _on_grid(x, 1 / 255, torch.uint8)),
        *([torch.nn.Flatten()] if isinstance(layer, torch.nn.Linear) else []),
        layer,
        Apply(lambda x: _on_grid(x, 1 / 64, torch.int8)),
        torch.nn.Flatten(),
    )
    with torch.no_grad():
        layer.weight[:, 0] = 1e4
    images = GENERATOR.random((8, 3, 1, 1), dtype=np.float32)
    images[:, 0] = 0
    _export(network, images, tmp_path / "model.onnx", float_weights=False)
    with torch.no_grad():
        meant = network(torch.from_numpy(images)).numpy()
    assert np.ptp(meant) > 0.1
    np.testing.assert_allclose(_run(tmp_path / "model.onnx", images), meant, atol=1 / 64 + 1e-6)
