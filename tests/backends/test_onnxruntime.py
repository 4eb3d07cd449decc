import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.export import ExportedProgram

from bitsweep import stats
from bitsweep.backends.onnxruntime.backend import OnnxRuntime
from bitsweep.config import backend as backend_module
from bitsweep.config.precision import Grid, Precision, Scheme
from bitsweep.errors import CompressionError, ConfigError
from bitsweep.graphs.program import logits_of
from bitsweep.graphs.tracing import export
from bitsweep.measuring.saturation import largest_products
from bitsweep.methods.ptq import PostTrainingQuantization
from bitsweep.runtime import gpu as gpu_module
from bitsweep.runtime.environment import Cpu, Gpu, current_cpu
from tests.quantization.networks import noise_splits

ProgramOf = Callable[[Scheme], ExportedProgram]
BACKEND = OnnxRuntime(name="onnxruntime")
ON_A_GPU = OnnxRuntime(name="onnxruntime", device="cuda")
WEIGHTS = Grid(bits=8, signed=True, symmetric=True, per_channel=True)
ACTIVATIONS = Grid(bits=8, signed=False, symmetric=False)
SIGNED = Grid(bits=8, signed=True, symmetric=True)
INT8 = Precision(name="int8", weights=WEIGHTS, activations=ACTIVATIONS)
without_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime is built for CUDA"
)


def _cpu(*flags: str, architecture: str = "x86_64") -> Cpu:
    return Cpu(model="any", architecture=architecture, flags=frozenset(flags))


@pytest.fixture
def int8_artifact(program_of: ProgramOf, tmp_path: Path) -> Path:
    BACKEND.lower(program_of(BACKEND.scheme(INT8, current_cpu())), tmp_path)
    return tmp_path


def test_weights_lose_a_bit_only_where_products_saturate() -> None:
    reduced = BACKEND.scheme(INT8, _cpu("avx2"))
    assert isinstance(reduced.weights, Grid)
    assert (reduced.weights.bits, reduced.activations, reduced.arithmetic) == (7, ACTIVATIONS, "integer")
    assert "VNNI" in reduced.why
    full = BACKEND.scheme(INT8, _cpu("avx2", "avx512_vnni"))
    assert (full.weights, full.why) == (WEIGHTS, "")


def test_signed_activations_saturate_nothing(tmp_path: Path) -> None:
    """On weights of 8 bits, with a ReLU on codes in between."""
    signed = Precision(name="signed", weights=replace(WEIGHTS, per_channel=False), activations=SIGNED)
    scheme = BACKEND.scheme(signed, _cpu("avx2"))
    assert (scheme.weights, scheme.activations, scheme.why) == (signed.weights, SIGNED, "")
    program, batch = largest_products(scheme)
    BACKEND.lower(program, tmp_path)
    np.testing.assert_allclose(
        BACKEND.load(tmp_path, threads=1)(batch), logits_of(program, [batch]), rtol=1e-5, atol=1e-5
    )
    kernels = BACKEND.profile(tmp_path, batch, threads=1)
    assert all(kernel.integer for kernel in kernels if kernel.macs)
    assert [kernel.integer for kernel in kernels if kernel.op == "Relu"] == [True, True]


def test_half_precision_is_computed_on_arm_only() -> None:
    half = Precision(name="fp16", weights="float16", activations="float16")
    assert BACKEND.scheme(half, _cpu("asimdhp", architecture="aarch64")).arithmetic == "float16"
    assert BACKEND.scheme(half, _cpu("avx512_fp16")).arithmetic == "float32"


@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        (Grid(bits=16, signed=True, symmetric=True), Grid(bits=16, signed=True, symmetric=True)),
        (WEIGHTS, Grid(bits=16, signed=True, symmetric=True)),
        (WEIGHTS, "float32"),
    ],
)
def test_what_no_kernel_takes_is_simulated(weights: Grid, activations: Grid) -> None:
    reason = BACKEND.unsupported(Precision(name="wide", weights=weights, activations=activations))
    assert reason is not None
    assert "use backend=reference" in reason


def test_an_int8_network_runs_on_integers_from_end_to_end(int8_artifact: Path, images: np.ndarray) -> None:
    kernels = BACKEND.profile(int8_artifact, images, threads=1)
    assert {kernel.op for kernel in kernels if kernel.macs} == {"QLinearConv", "QGemm"}
    assert [kernel.op for kernel in kernels if not kernel.integer] == ["QuantizeLinear"]


class Gated(torch.nn.Module):
    """An inverted residual block as MobileNetV3 and EfficientNet have it, padded on one side."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], gate: str) -> None:
        super().__init__()
        self.function, self.gate = function, getattr(torch.nn.functional, gate)
        self.stem, self.depthwise = torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze, self.expand = torch.nn.Conv2d(8, 4, 1), torch.nn.Conv2d(4, 8, 1)
        self.project, self.head = torch.nn.Conv2d(8, 8, 1), torch.nn.Linear(8, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.function(self.stem(torch.nn.functional.pad(images, (0, 1, 0, 1))))
        y = self.function(self.depthwise(x))
        pooled = torch.nn.functional.adaptive_avg_pool2d(y, 1)
        x = x + self.project(y * self.gate(self.expand(torch.relu(self.squeeze(pooled)))))
        return self.head(x.mean((2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "gate", "activations"),
    [
        ("hardswish", "hardsigmoid", ACTIVATIONS),
        ("hardswish", "hardsigmoid", SIGNED),
        ("silu", "sigmoid", ACTIVATIONS),
        ("relu6", "hardsigmoid", SIGNED),
    ],
    ids=str,
)
def test_gated_blocks_run_on_integers_from_end_to_end(
    function: str, gate: str, activations: Grid, images: np.ndarray, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = Gated(getattr(torch.nn.functional, function), gate)
    scheme = BACKEND.scheme(Precision(name="any", weights=WEIGHTS, activations=activations), current_cpu())
    method = PostTrainingQuantization(name="ptq", calibration_images=32)
    program = method.compress(network.eval(), noise_splits(32), input_shape=(3, 32, 32), scheme=scheme, seed=0).program
    BACKEND.lower(program, tmp_path)
    kernels = BACKEND.profile(tmp_path, images, threads=1)
    assert [kernel.op for kernel in kernels if not kernel.integer] == ["QuantizeLinear"]
    assert stats.sqnr_db(logits_of(program, [images]), BACKEND.load(tmp_path, threads=1)(images)) > 30


class Shuffled(torch.nn.Module):
    """Units as ShuffleNetV2 has them: one half of the channels goes past the layers, and both are shuffled.

    What is added in the end comes from fewer rows and columns, as in feature pyramids.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.nn.Linear(8, 4)
        self.units = torch.nn.ModuleList(torch.nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(images))
        for unit in self.units:
            past, through = x.chunk(2, 1)
            x = torch.nn.functional.channel_shuffle(torch.cat([past, torch.relu(unit(through))], 1), 2)
        x = x + torch.nn.functional.interpolate(torch.nn.functional.max_pool2d(x, 2), scale_factor=2)
        return self.head(x.mean((2, 3)))


def test_parts_of_codes_are_codes(images: np.ndarray, tmp_path: Path) -> None:
    torch.manual_seed(0)
    scheme = BACKEND.scheme(Precision(name="any", weights=WEIGHTS, activations=ACTIVATIONS), current_cpu())
    method = PostTrainingQuantization(name="ptq", calibration_images=32)
    made = method.compress(Shuffled().eval(), noise_splits(32), input_shape=(3, 32, 32), scheme=scheme, seed=0)
    BACKEND.lower(made.program, tmp_path)
    kernels = BACKEND.profile(tmp_path, images, threads=1)
    assert [kernel.op for kernel in kernels if not kernel.integer] == ["QuantizeLinear"]
    assert {kernel.op for kernel in kernels if kernel.macs} == {"QLinearConv", "QGemm"}


def test_without_fused_kernels_it_computes_the_reference(
    int8_artifact: Path, program_of: ProgramOf, images: np.ndarray
) -> None:
    plain = OnnxRuntime(name="onnxruntime", optimization="none")
    reference_NK = logits_of(program_of(BACKEND.scheme(INT8, current_cpu())), [images])
    assert stats.sqnr_db(reference_NK, plain.load(int8_artifact, threads=1)(images)) > 40
    kernels = plain.profile(int8_artifact, images, threads=1)
    assert {kernel.op for kernel in kernels if kernel.macs} == {"Conv", "Gemm"}
    assert not any(kernel.integer for kernel in kernels if kernel.macs)


def test_an_int8_artifact_is_small(int8_artifact: Path, program_of: ProgramOf) -> None:
    fp32_bytes = sum(value.numel() * 4 for value in program_of(Scheme(
        weights="float32", activations="float32", arithmetic="float32"
    )).state_dict.values())  # fmt: skip
    (file,) = int8_artifact.iterdir()
    graph_bytes = 12_000
    assert file.stat().st_size < 0.3 * fp32_bytes + graph_bytes


def test_no_thread_spins_between_runs(int8_artifact: Path, images: np.ndarray) -> None:
    infer = BACKEND.load(int8_artifact, threads=2)
    spent = []
    for _ in range(10):
        infer(images)
        before = time.process_time()
        time.sleep(0.03)
        spent.append(time.process_time() - before)
    assert np.median(spent) < 0.005


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A GPU that decisions are made for; nothing runs on it."""
    gpu = Gpu(model="NVIDIA L4", architecture="sm89")
    for module in (backend_module, gpu_module):
        monkeypatch.setattr(module, "current_gpu", lambda: gpu)
    return gpu


def test_without_a_gpu_it_is_the_cpu_that_is_named(fp32: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_module, "current_gpu", lambda: None)
    assert ON_A_GPU.unsupported(fp32) == "backend.device=cuda: there is no NVIDIA GPU here; use backend.device=cpu"


@without_cuda
def test_a_build_without_cuda_is_told_which_to_install(gpu: Gpu, fp32: Precision) -> None:
    reason = ON_A_GPU.unsupported(fp32)
    assert reason is not None
    assert "CPUExecutionProvider only" in reason
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]', or use backend.device=cpu" in reason


def test_a_gpu_does_not_make_up_for_a_missing_package(
    gpu: Gpu, fp32: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "onnxruntime is not installed" in (ON_A_GPU.unsupported(fp32) or "")


def test_a_gpu_has_kernels_for_floats_only(gpu: Gpu, fp32: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntime, "_no_cuda_build", lambda self: None)
    assert ON_A_GPU.unsupported(fp32) is None
    reason = ON_A_GPU.unsupported(INT8)
    assert reason is not None
    assert "use backend.device=cpu, or backend=tensorrt" in reason


@pytest.mark.parametrize(("kind", "arithmetic"), [("float16", "float16"), ("bfloat16", "float32")])
def test_half_precision_on_a_gpu(kind: str, arithmetic: str, gpu: Gpu) -> None:
    half = Precision(name="half", weights=kind, activations=kind)  # type: ignore[arg-type]
    scheme = ON_A_GPU.scheme(half, _cpu("avx2"))
    assert (scheme.weights, scheme.arithmetic) == (kind, arithmetic)
    assert ("ONNX Runtime on this GPU (sm89)" in scheme.why) == (arithmetic == "float32")


@without_cuda
@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider' is not in available provider names")
def test_nothing_runs_on_the_cpu_that_was_meant_for_a_gpu(int8_artifact: Path) -> None:
    """ONNX Runtime itself would only warn, and be measured on the CPU."""
    with pytest.raises(ConfigError, match=r"cannot run all of this on the GPU; use backend\.device=cpu"):
        ON_A_GPU.load(int8_artifact, threads=1)


def test_what_has_no_kernel_is_no_damaged_file(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).double()
    network.register_forward_pre_hook(lambda module, images: images[0].double())
    program = export(network.eval(), input_shape=(3, 8, 8))
    BACKEND.lower(program, tmp_path)
    with pytest.raises(CompressionError, match=r"^ONNX Runtime does not take the program: .*; let the network compute"):
        BACKEND.load(tmp_path, threads=1)


def test_a_file_that_says_too_low_an_opset_is_to_be_written_anew(tmp_path: Path) -> None:
    """What `quantize_static` makes of a file in opset 11 where scales are of single channels."""
    make = onnx.helper
    nodes = [
        make.make_node("DequantizeLinear", ["codes", "scales"], ["weights"], axis=0),
        make.make_node("MatMul", ["images", "weights"], ["logits"]),
    ]
    constants = [
        onnx.numpy_helper.from_array(np.ones((4, 2), np.int8), "codes"),
        onnx.numpy_helper.from_array(np.ones(4, np.float32), "scales"),
    ]
    values = [make.make_tensor_value_info(name, 1, ["N", size]) for name, size in (("images", 4), ("logits", 2))]
    graph = make.make_graph(nodes, "graph", values[:1], values[1:], constants)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 11)], ir_version=8)
    onnx.save(model, tmp_path / BACKEND.artifact)
    with pytest.raises(CompressionError, match=r"axis .*; this came with a later opset .*: write the file .* opset 13"):
        BACKEND.load(tmp_path, threads=1)
