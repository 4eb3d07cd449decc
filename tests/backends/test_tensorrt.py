import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch.export import ExportedProgram

from bitsweep.backends.tensorrt import backend as tensorrt
from bitsweep.backends.tensorrt.backend import TensorRt, profile_of
from bitsweep.config.precision import FLOAT32, Grid, Precision, Scheme
from bitsweep.errors import CompressionError, MissingPackage
from bitsweep.results import OpProfile
from bitsweep.runtime.environment import Gpu, current_cpu, version_of

ProgramOf = Callable[[Scheme], ExportedProgram]
BACKEND = TensorRt(name="tensorrt")
WEIGHTS = Grid(bits=8, signed=True, symmetric=True, per_channel=True)
UNSIGNED, SIGNED = Grid(bits=8, signed=False, symmetric=False), Grid(bits=8, signed=True, symmetric=True)
INT8 = Precision(name="int8", weights=WEIGHTS, activations=UNSIGNED)
ON_INTEGERS = Scheme(weights=WEIGHTS, activations=SIGNED, arithmetic="integer")

builds = pytest.mark.skipif(
    version_of(TensorRt.package) == "absent", reason=str(MissingPackage(TensorRt.package, TensorRt.extra))
)


def test_activations_become_symmetric() -> None:
    scheme = BACKEND.scheme(INT8, current_cpu())
    assert (scheme.weights, scheme.activations, scheme.arithmetic) == (WEIGHTS, SIGNED, "integer")
    assert scheme.why == "TensorRT takes no zero points: activations are s8 per-tensor symmetric"
    symmetric = Precision(name="int8_symmetric", weights=WEIGHTS, activations=SIGNED)
    assert BACKEND.scheme(symmetric, current_cpu()) == ON_INTEGERS


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_is_computed(kind: str) -> None:
    scheme = BACKEND.scheme(Precision(name="half", weights=kind, activations=kind), current_cpu())  # type: ignore[arg-type]
    assert scheme == Scheme(weights=kind, activations=kind, arithmetic=kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("weights", "activations", "hint"),
    [
        (Grid(bits=16, signed=True, symmetric=True), Grid(bits=16, signed=True, symmetric=True), "reference"),
        (WEIGHTS, "float32", "reference"),
        (Grid(bits=2, signed=True, symmetric=False, per_channel=True), UNSIGNED, "onnxruntime"),
    ],
)
def test_what_no_kernel_takes_is_sent_elsewhere(weights: Grid, activations: Grid | str, hint: str) -> None:
    reason = BACKEND.unsupported(Precision(name="any", weights=weights, activations=activations))  # type: ignore[arg-type]
    assert reason is not None
    assert f"use backend={hint}" in reason


def test_an_engine_runs_on_its_architecture_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "current_gpu", lambda: None)
    assert "no NVIDIA GPU here to run an engine for sm89 on" in (BACKEND.cannot_run() or "")
    monkeypatch.setattr(tensorrt, "current_gpu", lambda: Gpu(model="NVIDIA H200", architecture="sm90"))
    assert BACKEND.cannot_run() == "backend.target=sm89: the GPU here, NVIDIA H200, is sm90"
    monkeypatch.setattr(tensorrt, "current_gpu", lambda: Gpu(model="NVIDIA L4", architecture="sm89"))
    assert BACKEND.cannot_run() is None


LAYERS = """Layers:
Name: cast_0, LayerType: kgen, Inputs: [ { Name: images, Dimensions: [-1,3,8,8], Datatype: Float }], Constants: [], \
Outputs: [ { Name: a, Dimensions: [-1,4,8,8], Datatype: Int8 }], Metadata: [ONNX Layer: c]
Name: c_1, LayerType: correlation, Inputs: [ { Name: a, Dimensions: [-1,4,8,8], Datatype: Int8 }], Constants: [ \
{ Name: w, Dimensions: [16,4,3,3], Datatype: Int8 }, { Name: s, Dimensions: [1,16,1,1], Datatype: Float }], \
Outputs: [ { Name: b, Dimensions: [-1,16,6,6], Datatype: Float }], Metadata: [ONNX Layer: c]
Name: scale_2, LayerType: kgen, Inputs: [ { Name: b, Dimensions: [-1,16,6,6], Datatype: Float }], Constants: [ \
{ Name: s, Dimensions: [1,16,1,1], Datatype: Float }], Outputs: [ { Name: d }], Metadata: [ONNX Layer: c][ONNX Layer: r]

I/O Tensors:
 Name: images, IOMode: Input, DataType: Float, Dimensions: [-1,3,8,8]
"""


def test_products_belong_to_the_layer_with_the_weights() -> None:
    assert profile_of(LAYERS, {"[ONNX Layer: c]": 15552}) == [
        OpProfile(name="cast_0", op="kgen Float", macs=0, integer=False),
        OpProfile(name="c_1", op="correlation Int8", macs=15552, integer=True),
        OpProfile(name="scale_2", op="kgen Float", macs=0, integer=False),
    ]


@builds
@pytest.mark.parametrize("target", ["sm80", "sm120"])
def test_an_int8_engine_multiplies_integers(
    target: str, program_of: ProgramOf, images: np.ndarray, macs: int, tmp_path: Path
) -> None:
    backend = TensorRt(name="tensorrt", target=target)  # type: ignore[arg-type]
    backend.lower(program_of(ON_INTEGERS), tmp_path)
    assert f"accelerators={{{target} }}".encode() in (tmp_path / "model.engine").read_bytes()
    products = [kernel for kernel in backend.profile(tmp_path, images, threads=1) if kernel.macs]
    assert [kernel.op for kernel in products] == ["correlation Int8"] * 4 + ["gemm Int8"]
    assert all(kernel.integer for kernel in products)
    assert sum(kernel.macs for kernel in products) == len(images) * macs


@builds
@pytest.mark.parametrize(("kind", "told"), [("float32", "Float"), ("float16", "Half"), ("bfloat16", "BFloat16")])
def test_a_float_engine_multiplies_what_was_asked_for(
    kind: str, told: str, program_of: ProgramOf, images: np.ndarray, macs: int, tmp_path: Path
) -> None:
    BACKEND.lower(program_of(Scheme(weights=kind, activations=kind, arithmetic=kind)), tmp_path)  # type: ignore[arg-type]
    products = [kernel for kernel in BACKEND.profile(tmp_path, images[:1], threads=1) if kernel.macs]
    assert sum(kernel.macs for kernel in products) == macs
    assert all(kernel.op.endswith(f" {told}") and not kernel.integer for kernel in products)


@builds
@pytest.mark.parametrize("tf32", [False, True])
def test_float32_is_rounded_only_if_asked_for(tf32: bool, program_of: ProgramOf, tmp_path: Path) -> None:
    TensorRt(name="tensorrt", tf32=tf32).lower(program_of(FLOAT32), tmp_path)
    assert f"tf32={int(tf32)}".encode() in (tmp_path / "model.engine").read_bytes()


@builds
def test_what_tensorrt_does_not_take_is_named(determinant: ExportedProgram, tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match=r"TensorRT does not take the program: .*Det"):
        BACKEND.lower(determinant, tmp_path)
    assert not list(tmp_path.iterdir())


@builds
@pytest.mark.slow
def test_a_real_network_is_integers_throughout(resnet20_of: ProgramOf, tmp_path: Path) -> None:
    BACKEND.lower(resnet20_of(ON_INTEGERS), tmp_path)
    products = [kernel for kernel in json.loads((tmp_path / "kernels.json").read_text()) if kernel["macs"]]
    assert len(products) == 20
    assert all(kernel["integer"] for kernel in products)
    assert sum(kernel["macs"] for kernel in products) == 40_551_040


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, program_of: ProgramOf, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingPackage, match=r"tensorrt-rtx is not installed; run: pip install 'bitsweep\[tensorrt\]'"):
        BACKEND.lower(program_of(FLOAT32), tmp_path)
