from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.export import ExportedProgram

from bitsweep.backends.inductor.backend import Inductor
from bitsweep.config import backend as backend_module
from bitsweep.config.backend import Backend
from bitsweep.config.precision import Grid, Precision
from bitsweep.runtime import gpu as gpu_module
from bitsweep.runtime.environment import Cpu, Gpu, current_cpu

Lowered = Callable[[Backend, Precision], tuple[ExportedProgram, Path]]
BACKEND = Inductor(name="inductor")
WEIGHTS = Grid(bits=8, signed=True, symmetric=True, per_channel=True)
UNSIGNED = Grid(bits=8, signed=False, symmetric=False)
INT8 = Precision(name="int8", weights=WEIGHTS, activations=UNSIGNED)
HALF = Precision(name="fp16", weights="float16", activations="float16")


def _cpu(*flags: str) -> Cpu:
    return Cpu(model="any", architecture="x86_64", flags=frozenset(flags))


def test_weights_lose_a_bit_only_where_products_saturate() -> None:
    reduced = BACKEND.scheme(INT8, _cpu("avx2"))
    assert (reduced.weights, reduced.activations) == (replace(WEIGHTS, bits=7), UNSIGNED)
    assert "VNNI" in reduced.why
    assert BACKEND.scheme(INT8, _cpu("avx2", "avx512_vnni")).weights == WEIGHTS


def test_the_scheme_is_the_widest_that_does_not_saturate() -> None:
    """By the kernel that compiled programs call, on the largest codes."""
    chosen = BACKEND.scheme(INT8, current_cpu())
    for weights in {chosen.weights, WEIGHTS}:
        assert isinstance(weights, Grid)
        codes = torch.full((8, 16, 3, 3), weights.hi, dtype=torch.int8)
        images = torch.full((1, 16, 5, 5), UNSIGNED.hi, dtype=torch.uint8).to(memory_format=torch.channels_last)
        geometry = ([1, 1], [0, 0], [1, 1], 1)
        scale, zero_point = torch.ones(8), torch.zeros(8, dtype=torch.int8)
        packed = torch.ops.onednn.qconv_prepack(codes, scale, 1.0, 0, *geometry, [1, 16, 5, 5])
        sums = torch.ops.onednn.qconv_pointwise(
            images, 1.0, 0, packed, scale, zero_point, None, *geometry, 1.0, 0, torch.float32, "none", [], ""
        )
        exact = torch.full_like(sums, 16 * 3 * 3 * weights.hi * UNSIGNED.hi)
        assert torch.equal(sums, exact) == (weights == chosen.weights)


@pytest.mark.parametrize(
    ("weights", "activations", "hint"),
    [
        (Grid(bits=16, signed=True, symmetric=True), Grid(bits=16, signed=True, symmetric=True), "reference"),
        (Grid(bits=2, signed=True, symmetric=False, per_channel=True), UNSIGNED, "onnxruntime"),
        (WEIGHTS, Grid(bits=8, signed=True, symmetric=True), "onnxruntime"),
    ],
)
def test_what_no_kernel_takes_is_sent_elsewhere(weights: Grid, activations: Grid, hint: str) -> None:
    reason = BACKEND.unsupported(Precision(name="any", weights=weights, activations=activations))
    assert reason is not None
    assert f"use backend={hint}" in reason


def test_halves_are_not_stored_as_floats() -> None:
    computes = BACKEND.scheme(HALF, current_cpu()).arithmetic == "float16"
    assert (BACKEND.unsupported(HALF) is None) == computes


def test_without_a_gpu_it_is_the_cpu_that_is_named(fp32: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_module, "current_gpu", lambda: None)
    reason = Inductor(name="inductor", device="cuda").unsupported(fp32)
    assert reason == "backend.device=cuda: there is no NVIDIA GPU here; use backend.device=cpu"


@pytest.mark.parametrize(("architecture", "computes"), [("sm61", False), ("sm89", True)])
def test_a_gpu_computes_halves_and_no_codes(
    architecture: str, computes: bool, fp32: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_module, "current_gpu", lambda: Gpu(model="any", architecture=architecture))
    monkeypatch.setattr(gpu_module, "no_gpu_for_pytorch", lambda: None)
    backend = Inductor(name="inductor", device="cuda")
    assert backend.unsupported(fp32) is None
    assert (backend.unsupported(HALF) is None) == computes
    assert (backend.scheme(HALF, _cpu("avx2")).arithmetic == "float16") == computes
    assert "use backend.device=cpu, or backend=tensorrt" in (backend.unsupported(INT8) or "")


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    reason = BACKEND.unsupported(INT8)
    assert reason is not None
    assert "no C++ compiler no-such-compiler: install one" in reason


@pytest.mark.slow
def test_weights_of_float_layers_are_laid_out_once(lowered: Lowered, fp32: Precision, images: np.ndarray) -> None:
    _, artifact = lowered(BACKEND, fp32)
    kernels = BACKEND.profile(artifact, images[:1], threads=1)
    assert {kernel.op.split()[0] for kernel in kernels} == {"convolution", "inner_product"}


@pytest.mark.slow
def test_an_int8_network_runs_on_integers_with_fused_rectifiers(lowered: Lowered, images: np.ndarray) -> None:
    _, artifact = lowered(BACKEND, INT8)
    kernels = BACKEND.profile(artifact, images[:2], threads=1)
    products = [kernel for kernel in kernels if not kernel.op.startswith("reorder")]  # AMX has a layout of its own
    assert [kernel.op.split()[0] for kernel in products] == ["convolution"] * 4 + ["matmul"]
    assert all((kernel.integer and "avx" in kernel.op) or "gemm" in kernel.op for kernel in products)


@pytest.mark.slow
def test_a_package_holds_code_and_codes_alone(lowered: Lowered, fp32: Precision) -> None:
    sizes = [(lowered(BACKEND, each)[1] / "model.pt2").stat().st_size for each in (INT8, fp32)]
    parameters = sum(value.numel() for value in lowered(BACKEND, fp32)[0].state_dict.values())
    assert sizes[1] - sizes[0] > 2 * parameters
    assert sizes[0] < 600_000
