from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.export import ExportedProgram

from bitsweep import stats
from bitsweep.backends.torch_quantized.backend import QuantizedKernels
from bitsweep.config.precision import FLOAT32, Grid, Precision, Scheme
from bitsweep.errors import ConfigError
from bitsweep.graphs.program import logits_of
from bitsweep.measuring.saturation import saturates
from bitsweep.runtime.environment import Cpu, current_cpu

ProgramOf = Callable[[Scheme], ExportedProgram]
ENGINES = ("fbgemm", "onednn", "qnnpack")
BACKENDS = {engine: QuantizedKernels(name=engine, engine=engine) for engine in ENGINES}
WEIGHTS = Grid(bits=8, signed=True, symmetric=True, per_channel=True)
UNSIGNED, SIGNED = Grid(bits=8, signed=False, symmetric=False), Grid(bits=8, signed=True, symmetric=True)
INT8 = Precision(name="int8", weights=WEIGHTS, activations=UNSIGNED)
each = pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)


def _cpu(*flags: str) -> Cpu:
    return Cpu(model="any", architecture="x86_64", flags=frozenset(flags))


@each
@pytest.mark.parametrize("activations", [UNSIGNED, SIGNED], ids=str)
def test_weights_lose_a_bit_only_where_products_saturate(backend: QuantizedKernels, activations: Grid) -> None:
    precision = replace(INT8, activations=activations)
    scheme = backend.scheme(precision, _cpu("avx2"))
    saturates = backend.engine != "qnnpack"
    assert (scheme.weights, scheme.activations) == (replace(WEIGHTS, bits=7 if saturates else 8), activations)
    assert ("VNNI" in scheme.why) == saturates
    with_vnni = backend.scheme(precision, _cpu("avx2", "avx512_vnni"))
    depthwise = backend.engine == "fbgemm"
    given = replace(WEIGHTS, depthwise_bits=7 if depthwise else 0)
    assert (with_vnni.weights, with_vnni.activations) == (given, activations)
    assert ("depthwise" in with_vnni.why) == depthwise
    assert backend.scheme(precision, _cpu("avx2", "avx_vnni")).weights == replace(WEIGHTS, bits=7 if depthwise else 8)


@each
@pytest.mark.parametrize("activations", [UNSIGNED, SIGNED], ids=str)
def test_the_scheme_is_the_widest_that_does_not_saturate(backend: QuantizedKernels, activations: Grid) -> None:
    chosen = backend.scheme(replace(INT8, activations=activations), current_cpu())
    for scheme in {chosen, replace(chosen, weights=WEIGHTS)}:
        assert saturates(backend, scheme) == (scheme != chosen)


def test_what_no_kernel_takes_is_sent_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    affine = Precision(name="int2", weights=replace(WEIGHTS, bits=2, symmetric=False), activations=UNSIGNED)
    assert "use backend=fbgemm" in str(BACKENDS["onednn"].unsupported(affine))
    assert BACKENDS["fbgemm"].unsupported(affine) is None
    wide = Precision(name="int16", weights=replace(WEIGHTS, bits=16), activations=replace(SIGNED, bits=16))
    assert all("use backend=reference" in str(backend.unsupported(wide)) for backend in BACKENDS.values())
    arm = Cpu(model="any", architecture="aarch64", flags=frozenset())
    monkeypatch.setattr("bitsweep.backends.torch_quantized.backend.current_cpu", lambda: arm)
    assert "on x86 only, not on aarch64: use backend=qnnpack" in str(BACKENDS["fbgemm"].unsupported(affine))
    assert BACKENDS["qnnpack"].unsupported(affine) is None


@each
def test_an_int8_network_runs_on_integers_from_end_to_end(
    backend: QuantizedKernels, program_of: ProgramOf, images: np.ndarray, tmp_path: Path
) -> None:
    backend.lower(program_of(backend.scheme(INT8, current_cpu())), tmp_path)
    kernels = backend.profile(tmp_path, images, threads=1)
    assert [kernel.op for kernel in kernels if kernel.macs] == [
        "quantized.conv2d_relu.new", "quantized.conv2d.new", "quantized.conv2d_relu.new", "quantized.conv2d.new",
        "quantized.linear_dynamic",
    ]  # fmt: skip
    assert {"aten.quantized_max_pool2d", "quantized.add_relu"} < {kernel.op for kernel in kernels if kernel.integer}
    floats = [kernel.op for kernel in kernels if not kernel.integer]
    assert floats[0] == "aten.quantize_per_tensor"
    assert floats[1:4] == ["aten.dequantize.self", "aten.mean.dim", "aten.as_strided_"]
    assert all(kernel.ms > 0 for kernel in kernels if kernel.macs)
    assert torch.backends.quantized.engine == backend.engine


def test_float32_is_computed_in_float32(program_of: ProgramOf, images: np.ndarray, tmp_path: Path) -> None:
    backend = BACKENDS["fbgemm"]
    backend.lower(program_of(FLOAT32), tmp_path)
    assert not any(kernel.integer for kernel in backend.profile(tmp_path, images, threads=1))


def test_an_int8_artifact_is_small(program_of: ProgramOf, tmp_path: Path) -> None:
    backend = BACKENDS["fbgemm"]
    backend.lower(program_of(backend.scheme(INT8, current_cpu())), tmp_path)
    fp32_bytes = sum(value.numel() * 4 for value in program_of(FLOAT32).state_dict.values())
    graph_bytes = 25_000
    assert (tmp_path / QuantizedKernels.artifact).stat().st_size < 0.3 * fp32_bytes + graph_bytes


def test_an_engine_that_pytorch_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", ["qnnpack"])
    with pytest.raises(ConfigError, match=r"backend\.engine=fbgemm: PyTorch on this CPU has qnnpack"):
        BACKENDS["fbgemm"].load(tmp_path, threads=1)


@pytest.mark.slow
def test_it_agrees_with_the_reference_on_real_images(
    resnet20_of: ProgramOf, cifar10_batches: list[np.ndarray], tmp_path: Path
) -> None:
    program = resnet20_of(BACKENDS["fbgemm"].scheme(INT8, current_cpu()))
    reference_NK = logits_of(program, cifar10_batches)
    for engine in ("fbgemm", "onednn"):
        BACKENDS[engine].lower(program, tmp_path)
        infer = BACKENDS[engine].load(tmp_path, threads=1)
        logits_NK = np.concatenate([infer(batch) for batch in cifar10_batches])
        assert stats.agreement(reference_NK, logits_NK) >= 0.99
        assert stats.sqnr_db(reference_NK, logits_NK) > 30
        kernels = BACKENDS[engine].profile(tmp_path, cifar10_batches[0][:1], threads=1)
        assert all(kernel.integer for kernel in kernels if kernel.macs)
