from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import ExportedProgram
from torchvision.ops import DeformConv2d

import bitsweep as bs
from bitsweep import stats
from bitsweep.backends.openvino.backend import OpenVino
from bitsweep.backends.openvino.deploy import KEPT
from bitsweep.config.precision import FLOAT32, Grid, Precision, Scheme
from bitsweep.errors import CompressionError
from bitsweep.graphs.program import logits_of
from bitsweep.graphs.tracing import export
from bitsweep.measuring.saturation import saturates
from bitsweep.methods.ptq import PostTrainingQuantization
from bitsweep.runtime.environment import Cpu, current_cpu
from tests.quantization.networks import noise_splits

pytest.importorskip("openvino", reason="openvino is not installed; run: pip install 'bitsweep[openvino]'")

ProgramOf = Callable[[Scheme], ExportedProgram]
BACKEND = OpenVino(name="openvino")
WEIGHTS = Grid(bits=8, signed=True, symmetric=True, per_channel=True)
UNSIGNED = Grid(bits=8, signed=False, symmetric=False)
INT8 = Precision(name="int8", weights=WEIGHTS, activations=UNSIGNED)


def _cpu(*flags: str) -> Cpu:
    return Cpu(model="any", architecture="x86_64", flags=frozenset(flags))


def test_weights_lose_a_bit_only_where_products_saturate() -> None:
    reduced = BACKEND.scheme(INT8, _cpu("avx2"))
    assert (reduced.weights, reduced.activations) == (replace(WEIGHTS, bits=7), UNSIGNED)
    assert "VNNI" in reduced.why
    full = BACKEND.scheme(INT8, _cpu("avx2", "avx_vnni"))
    assert (full.weights, full.why) == (WEIGHTS, "")


def test_layers_of_two_kinds_with_as_many_outputs_run_on_integers(tmp_path: Path) -> None:
    """Their zero points are the same: stored once, both layers would be computed in float."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3, stride=5), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(576, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16), torch.nn.ReLU(),
        torch.nn.Linear(16, 4),
    )  # fmt: skip
    method = PostTrainingQuantization(name="ptq", calibration_images=32)
    scheme = BACKEND.scheme(INT8, current_cpu())
    compressed = method.compress(network.eval(), noise_splits(32), input_shape=(3, 32, 32), scheme=scheme, seed=0)
    BACKEND.lower(compressed.program, tmp_path)
    kernels = BACKEND.profile(tmp_path, np.zeros((1, 3, 32, 32), np.float32), threads=1)
    assert [kernel.name for kernel in kernels if kernel.macs and not kernel.integer] == []


def test_the_scheme_is_the_widest_that_does_not_saturate() -> None:
    chosen = BACKEND.scheme(INT8, current_cpu())
    for scheme in {chosen, replace(chosen, weights=WEIGHTS)}:
        assert saturates(BACKEND, scheme) == (scheme != chosen)


@pytest.mark.parametrize(
    ("weights", "activations", "hint"),
    [
        (Grid(bits=16, signed=True, symmetric=True), Grid(bits=16, signed=True, symmetric=True), "reference"),
        (WEIGHTS, "float32", "reference"),
        (Grid(bits=2, signed=True, symmetric=False, per_channel=True), UNSIGNED, "onnxruntime"),
        (WEIGHTS, Grid(bits=8, signed=True, symmetric=True), "onnxruntime"),
    ],
)
def test_what_no_kernel_takes_is_sent_elsewhere(weights: Grid, activations: Grid | str, hint: str) -> None:
    reason = BACKEND.unsupported(Precision(name="any", weights=weights, activations=activations))
    assert reason is not None
    assert f"use backend={hint}" in reason


def test_an_int8_network_runs_on_integers_from_end_to_end(
    program_of: ProgramOf, images: np.ndarray, tmp_path: Path
) -> None:
    BACKEND.lower(program_of(BACKEND.scheme(INT8, current_cpu())), tmp_path)
    kernels = BACKEND.profile(tmp_path, images, threads=1)
    assert [kernel.op.split()[0] for kernel in kernels if kernel.macs] == ["Convolution"] * 5
    assert [kernel.name for kernel in kernels if not kernel.integer] == ["node_quantize_per_tensor_default"]


@pytest.mark.parametrize("gate", [torch.nn.Hardswish, torch.nn.SiLU])
def test_activation_functions_run_in_the_layer_before(
    gate: type[torch.nn.Module], images: np.ndarray, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, stride=2), gate(), torch.nn.Conv2d(16, 16, 3, groups=16), gate(),
        torch.nn.Conv2d(16, 24, 1), gate(), torch.nn.Conv2d(24, 8, 1), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    )  # fmt: skip
    method = PostTrainingQuantization(name="ptq", calibration_images=32)
    scheme = BACKEND.scheme(INT8, current_cpu())
    compressed = method.compress(network.eval(), noise_splits(32), input_shape=(3, 32, 32), scheme=scheme, seed=0)
    BACKEND.lower(compressed.program, tmp_path)
    kernels = BACKEND.profile(tmp_path, images, threads=1)
    # OpenVINO itself decides, not always alike, whether a kernel of its own dequantizes the logits.
    apart = {kernel.name for kernel in kernels if kernel.op.startswith("Subgraph")}
    assert apart <= {"node_quantize_per_tensor_default", "logits"}
    assert stats.sqnr_db(logits_of(compressed.program, [images]), BACKEND.load(tmp_path, threads=1)(images)) > 30


def test_float32_is_computed_in_float32(program_of: ProgramOf, images: np.ndarray, tmp_path: Path) -> None:
    BACKEND.lower(program_of(FLOAT32), tmp_path)
    kernels = BACKEND.profile(tmp_path, images, threads=1)
    assert all(kernel.op.endswith("_f32") for kernel in kernels)


def test_batches_come_in_any_order_and_results_stay(program_of: ProgramOf, images: np.ndarray, tmp_path: Path) -> None:
    BACKEND.lower(program_of(FLOAT32), tmp_path)
    infer = BACKEND.load(tmp_path, threads=1)
    sizes = [*range(1, KEPT + 2), 1, KEPT]
    many = np.concatenate([images, images[::-1]])
    found = [infer(many[size : 2 * size]) for size in sizes]
    expected = logits_of(program_of(FLOAT32), [many])
    for size, logits_NK in zip(sizes, found, strict=True):
        np.testing.assert_allclose(logits_NK, expected[size : 2 * size], rtol=1e-3, atol=1e-4)


class Tokens(nn.Module):
    """A linear layer behind a learned token and those of an image, which all have either sign."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.token = nn.Conv2d(3, 16, 3, 4, 1), nn.Parameter(torch.randn(1, 1, 16))
        self.mix, self.head = nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), tokens], 1)
        return self.head(self.mix(tokens).relu()[:, 0] + tokens.mean(1))


def test_tokens_whose_zero_has_any_code_are_joined(tmp_path: Path) -> None:
    torch.manual_seed(0)
    scheme = BACKEND.scheme(INT8, current_cpu())
    compress = PostTrainingQuantization(name="ptq", calibration_images=32).compress
    program = compress(Tokens().eval(), noise_splits(32), input_shape=(3, 32, 32), scheme=scheme, seed=0).program
    BACKEND.lower(program, tmp_path)
    run, images = (
        BACKEND.load(tmp_path, threads=1),
        np.random.default_rng(0).standard_normal((5, 3, 32, 32), np.float32),
    )
    for batch in (images, images[:1]):
        assert stats.sqnr_db(logits_of(program, [batch]), run(batch)) > 25


def test_what_openvino_does_not_take_is_named(determinant: ExportedProgram, tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match=r"OpenVINO has nothing for .*det.*, which is Det in ONNX; use backend="):
        BACKEND.lower(determinant, tmp_path)


class Deformed(nn.Module):
    """A deformable convolution behind an ordinary one."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets, self.bend = nn.Conv2d(3, 18, 3, padding=1), DeformConv2d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.bend(x, self.offsets(x)).mean((2, 3)))


def test_the_layer_that_openvino_has_nothing_for_is_named(tmp_path: Path) -> None:
    program = export(Deformed(), input_shape=(3, 8, 8))
    with pytest.raises(CompressionError, match=r"nothing for bend \(torchvision.deform_.*\), .* DeformConv"):
        BACKEND.lower(program, tmp_path)
    with pytest.raises(CompressionError, match="nothing for node_deform_conv2d, which is DeformConv"):
        BACKEND.take(tmp_path / "model.onnx", tmp_path)


class Apply(nn.Module):
    """A function of images."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x).mean((2, 3))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: torch.fft.rfft2(x).abs(), "fft_r.* yields complex numbers"),
        (lambda x: nn.functional.interpolate(x, 5, mode="bilinear", antialias=True), "aa.* resizes with antialiasing"),
    ],
)
def test_what_openvino_computes_wrong_is_refused(function: Any, message: str, tmp_path: Path) -> None:
    program = export(Apply(function), input_shape=(3, 8, 8))
    with pytest.raises(CompressionError, match=f"{message}, which OpenVINO computes wrong; use backend=onnxruntime"):
        BACKEND.lower(program, tmp_path)


@pytest.mark.slow
def test_it_agrees_with_the_reference_on_real_images(
    resnet20_of: ProgramOf, cifar10_batches: list[np.ndarray], tmp_path: Path
) -> None:
    program = resnet20_of(BACKEND.scheme(INT8, current_cpu()))
    BACKEND.lower(program, tmp_path)
    infer = BACKEND.load(tmp_path, threads=1)
    reference_NK = logits_of(program, cifar10_batches)
    logits_NK = np.concatenate([infer(batch) for batch in cifar10_batches])
    assert stats.agreement(reference_NK, logits_NK) >= 0.99
    assert stats.sqnr_db(reference_NK, logits_NK) > 25
    kernels = BACKEND.profile(tmp_path, cifar10_batches[0][:1], threads=1)
    assert all(kernel.integer for kernel in kernels if kernel.macs)


def test_tokens_are_averaged_for_each_image_of_a_batch(tmp_path: Path) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
            self.head = nn.Linear(16, 10)
            self.mixed = nn.Parameter(torch.randn(64, 64) * 0.3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head((self.mixed @ self.stem(images).flatten(2).mT).mean(1))

    torch.manual_seed(1)
    images = torch.randn(64, 3, 32, 32)
    program = bs.compress(Tokens().eval(), images, backend="openvino")
    logits = bs.lower(program, "openvino", tmp_path / "lowered")(images.numpy())
    assert stats.sqnr_db(program(images).numpy(), logits) > 30
