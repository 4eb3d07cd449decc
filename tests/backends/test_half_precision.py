"""Half precision as arithmetic: where the engine and the CPU have it, by name and by the kernels that run."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.export import ExportedProgram

from bitsweep import stats
from bitsweep.backends.inductor import onednn
from bitsweep.config.backend import Backend
from bitsweep.config.precision import Precision, Scheme
from bitsweep.graphs.program import logits_of
from bitsweep.methods.ptq import PostTrainingQuantization
from bitsweep.runtime.environment import Cpu, current_cpu
from tests.backends.conftest import skip_unless_lowered
from tests.quantization.networks import noise_splits

CONF = Path(__file__).parents[2] / "conf"
BACKENDS: dict[str, Backend] = {
    name: instantiate(OmegaConf.load(CONF / "backend" / f"{name}.yaml"), _convert_="all")
    for name in ("openvino", "onnxruntime", "inductor", "torch", "onednn")
}
PRECISIONS: dict[str, Precision] = {
    name: instantiate(OmegaConf.load(CONF / "precision" / f"{name}.yaml"), _convert_="all")
    for name in ("bf16", "fp16", "int8")
}
#: Types as kernels' names end with them.
ENDINGS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
X86_BF16, X86_FP16, X86_AMX = ("avx2", "avx512_bf16"), ("avx2", "avx512_fp16"), ("avx2", "amx_bf16", "amx_fp16")
ARM = ("asimd", "asimdhp", "bf16")


@pytest.mark.parametrize(
    ("backend_name", "architecture", "flags", "computed"),
    [
        *((name, "x86_64", X86_BF16, {"bf16"}) for name in ("openvino", "inductor", "torch", "onednn")),
        *((name, "x86_64", X86_FP16, {"fp16"}) for name in ("openvino", "inductor", "torch", "onednn")),
        *((name, "x86_64", X86_AMX, {"bf16", "fp16"}) for name in ("openvino", "inductor", "torch", "onednn")),
        *((name, "aarch64", ARM, {"bf16", "fp16"}) for name in ("inductor", "torch", "onednn")),
        ("openvino", "aarch64", ARM, {"fp16"}),
        ("onnxruntime", "x86_64", (*X86_AMX, *X86_BF16, *X86_FP16), set()),
        ("onnxruntime", "aarch64", ARM, {"fp16"}),
        *((name, "x86_64", ("avx2", "avx512f"), set()) for name in BACKENDS),
    ],
)
def test_it_is_computed_where_engine_and_cpu_do(
    backend_name: str, architecture: str, flags: tuple[str, ...], computed: set[str]
) -> None:
    cpu = Cpu(model="any", architecture=architecture, flags=frozenset(flags))
    for name in ("bf16", "fp16"):
        wanted = PRECISIONS[name].weights
        scheme = BACKENDS[backend_name].scheme(PRECISIONS[name], cpu)
        assert scheme.weights == wanted
        assert scheme.activations == scheme.arithmetic == (wanted if name in computed else "float32")
        assert (f"has no {wanted} arithmetic: weights are stored as {wanted}" in scheme.why) == (name not in computed)


@pytest.mark.parametrize(
    ("backend_name", "precision_name"),
    [
        *((name, precision) for name in ("openvino", "torch") for precision in ("bf16", "fp16")),
        pytest.param("inductor", "bf16", marks=pytest.mark.slow),  # takes a compiler half a minute
    ],
)
def test_the_kernels_that_run_are_of_the_type_that_is_told(
    backend_name: str,
    precision_name: str,
    lowered: Callable[[Backend, Precision], tuple[ExportedProgram, Path]],
    images: np.ndarray,
) -> None:
    backend, precision = BACKENDS[backend_name], PRECISIONS[precision_name]
    program, artifact = lowered(backend, precision)
    arithmetic = backend.scheme(precision, current_cpu()).arithmetic
    assert _types(backend, artifact, images) == {ENDINGS[arithmetic]}
    least_db = {"float32": 100, "float16": 45, "bfloat16": 30}[arithmetic]
    assert stats.sqnr_db(logits_of(program, [images]), backend.load(artifact, threads=1)(images)) > least_db


def _types(backend: Backend, artifact: Path, images: np.ndarray) -> set[str]:
    """Types that an engine's convolutions and products computed in."""
    if backend.name == "torch":
        infer = backend.load(artifact, threads=1)
        kernels = onednn.executed(lambda: infer(images))
    else:
        kernels = backend.profile(artifact, images, threads=1)
    return {kernel.op.replace("_", " ").split()[-1] for kernel in kernels if kernel.macs}


def test_storage_alone_is_computed_in_float32(
    program_of: Callable[[Scheme], ExportedProgram], images: np.ndarray, tmp_path: Path
) -> None:
    """Also by a CPU that could do it in half precision."""
    backend = BACKENDS["openvino"]
    skip_unless_lowered(backend, PRECISIONS["bf16"])
    plain = Cpu(model="any", architecture="x86_64", flags=frozenset({"avx2"}))
    backend.lower(program_of(backend.scheme(PRECISIONS["bf16"], plain)), tmp_path)
    assert _types(backend, tmp_path, images) == {"f32"}


@pytest.mark.parametrize("islands", ["fp32", "bf16"])
def test_islands_between_codes_are_of_the_type_that_is_told(islands: str, tmp_path: Path) -> None:
    backend = replace(BACKENDS["openvino"], float_islands=islands)  # type: ignore[call-arg]
    skip_unless_lowered(backend, PRECISIONS["int8"])
    scheme = backend.scheme(PRECISIONS["int8"], current_cpu())
    backend.lower(_with_softmax(replace(scheme, why="")), tmp_path)
    kernels = backend.profile(tmp_path, np.ones((1, 3, 16, 16), np.float32), threads=1)
    (island,) = {kernel.op.split("_")[-1] for kernel in kernels if kernel.op.startswith("Softmax")}
    computed = "floats between codes are computed in bfloat16" in scheme.why
    assert computed == (islands == "bf16" and current_cpu().computes_bf16)
    assert island == ("bf16" if computed else "f32")
    assert all(kernel.integer for kernel in kernels if kernel.macs)


@cache
def _with_softmax(scheme: Scheme) -> ExportedProgram:
    """A network with a softmax, which OpenVINO has no integer kernel for, between convolutions."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Softmax(1), torch.nn.Conv2d(8, 4, 14),
        torch.nn.Flatten(),
    )  # fmt: skip
    method = PostTrainingQuantization(name="ptq", calibration_images=32)
    splits = noise_splits(16)
    return method.compress(network.eval(), splits, input_shape=(3, 16, 16), scheme=scheme, seed=0).program
