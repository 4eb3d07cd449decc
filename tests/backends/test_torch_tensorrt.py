import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.export import ExportedProgram

import bitsweep as bs
from bitsweep import cell as cell_module
from bitsweep import planning, stats
from bitsweep.backends.torch_tensorrt import backend as torch_tensorrt
from bitsweep.backends.torch_tensorrt.backend import TorchTensorRt
from bitsweep.backends.torch_tensorrt.lowering import described
from bitsweep.config.backend import Backend
from bitsweep.config.precision import FLOAT32, Grid, Precision, Scheme
from bitsweep.errors import CompressionError, MissingPackage
from bitsweep.graphs.program import logits_of
from bitsweep.results import OpProfile
from bitsweep.runtime import gpu as gpu_module
from bitsweep.runtime.environment import Gpu, current_cpu, version_of
from bitsweep.runtime.store import Store

ProgramOf = Callable[[Scheme], ExportedProgram]
Lowered = Callable[[Backend, Precision], tuple[ExportedProgram, Path]]
BACKEND = TorchTensorRt(name="torch_tensorrt")
WEIGHTS = Grid(bits=8, signed=True, symmetric=True, per_channel=True)
UNSIGNED = Grid(bits=8, signed=False, symmetric=False)
WIDE = Grid(bits=16, signed=True, symmetric=True)
HALF = Precision(name="fp16", weights="float16", activations="float16")
NO_GPU = "backend=torch_tensorrt: there is no NVIDIA GPU here; use backend=tensorrt"
MISSING = "torch-tensorrt is not installed; run: pip install 'bitsweep[torch-tensorrt]'"

on_a_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or version_of(TorchTensorRt.package) == "absent",
    reason="there is no NVIDIA GPU here" if not torch.cuda.is_available() else MISSING,
)


def _place(gpu: Gpu | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let decisions be made for a machine with that GPU, which PyTorch sees; nothing runs on it."""
    for module in (gpu_module, cell_module, torch_tensorrt):
        monkeypatch.setattr(module, "current_gpu", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)


def _plan(words: list[str], folder: Path) -> planning.Planned:
    (cell,) = bs.grid(words)
    (planned,) = planning.plan([cell], Store(folder), None)
    return planned


@pytest.mark.parametrize("installed", ["2.14.0", "absent"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_without_a_gpu_a_cell_is_skipped_with_the_cure(
    precision: str, installed: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor is there another hint in installing what cannot be imported there."""
    _place(None, monkeypatch)
    monkeypatch.setattr(cell_module, "version_of", lambda package: installed)
    planned = _plan(["backend=torch_tensorrt", f"precision={precision}"], tmp_path)
    assert (planned.verdict, planned.reason) == ("skip", NO_GPU)


def test_with_a_gpu_it_is_the_package_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _place(Gpu(model="NVIDIA L4", architecture="sm89"), monkeypatch)
    versions = {TorchTensorRt.package: "absent"}
    monkeypatch.setattr(cell_module, "version_of", lambda package: versions.get(package, "1"))
    words = ["backend=torch_tensorrt", "precision=fp16"]
    planned = _plan(words, tmp_path)
    assert (planned.verdict, planned.reason) == ("skip", MISSING)
    versions.clear()
    assert _plan(words, tmp_path).verdict == "run"


@pytest.mark.parametrize(
    ("weights", "activations", "hint"),
    [(WEIGHTS, UNSIGNED, "tensorrt"), (WIDE, WIDE, "reference"), (WEIGHTS, "float32", "reference")],
)
def test_integers_are_sent_elsewhere(weights: Grid, activations: Grid | str, hint: str) -> None:
    reason = BACKEND.unsupported(Precision(name="any", weights=weights, activations=activations))  # type: ignore[arg-type]
    assert reason is not None
    assert reason.endswith(f"use backend={hint}")


def test_half_precision_is_computed_or_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    bf16 = Precision(name="bf16", weights="bfloat16", activations="bfloat16")
    _place(Gpu(model="NVIDIA L4", architecture="sm89"), monkeypatch)
    for precision in (HALF, bf16):
        kind = precision.weights
        assert BACKEND.scheme(precision, current_cpu()) == Scheme(weights=kind, activations=kind, arithmetic=kind)  # type: ignore[arg-type]
        assert BACKEND.unsupported(precision) is None
    _place(Gpu(model="NVIDIA T4", architecture="sm75"), monkeypatch)
    assert BACKEND.unsupported(HALF) is None
    assert "would store bfloat16 weights as float32 here" in (BACKEND.unsupported(bf16) or "")


@pytest.mark.parametrize("key", ["Format/Datatype", "Datatype"])
def test_layers_are_told_with_their_types(key: str) -> None:
    """The inspector's key for a type has changed from version to version."""
    read = [{"Name": "a", key: "Half"}, {"Name": "b", key: "Float"}]
    conv = {"Name": "conv", "LayerType": "correlation", "Inputs": read}
    shape = {"Name": "shape", "LayerType": "shape_call", "Inputs": []}
    assert described(json.dumps({"Layers": [shape, conv], "Bindings": ["images", "logits"]}), macs=7) == (
        OpProfile(name="shape", op="shape_call", macs=0, integer=False),
        OpProfile(name="conv", op="correlation Half", macs=0, integer=False),
        OpProfile(name="all layers", op="multiply-accumulates", macs=7, integer=False),
    )


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, program_of: ProgramOf, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    images = np.zeros((1, 3, 32, 32), np.float32)
    for use in (
        lambda: BACKEND.lower(program_of(FLOAT32), tmp_path),
        lambda: BACKEND.load(tmp_path, threads=1),
        lambda: BACKEND.load_on_device(tmp_path, images, threads=1),
        lambda: BACKEND.profile(tmp_path, images, threads=1),
    ):
        with pytest.raises(MissingPackage) as caught:
            use()
        assert str(caught.value) == MISSING


@on_a_gpu
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "told"), [("float32", "Float|FP32"), ("float16", "Half|FP16"), ("bfloat16", "BF")])
def test_an_engine_computes_in_the_type_that_was_asked_for(
    kind: str, told: str, lowered: Lowered, images: np.ndarray
) -> None:
    precision = Precision(name=kind, weights=kind, activations=kind)  # type: ignore[arg-type]
    _, artifact = lowered(BACKEND, precision)
    assert any(re.search(told, kernel.op) for kernel in BACKEND.profile(artifact, images, threads=1))


@on_a_gpu
@pytest.mark.slow
def test_more_images_than_an_engine_takes_are_run_in_parts(
    fp32: Precision, lowered: Lowered, images: np.ndarray
) -> None:
    backend = TorchTensorRt(name="torch_tensorrt", max_batch=2)
    program, artifact = lowered(backend, fp32)
    assert stats.sqnr_db(logits_of(program, [images]), backend.load(artifact, threads=1)(images)) > 90


@on_a_gpu
@pytest.mark.slow
def test_an_operation_without_a_converter_is_named(determinant: ExportedProgram, tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match=r"Torch-TensorRT does not convert the program: .*_linalg_det"):
        BACKEND.lower(determinant, tmp_path)
    assert not list(tmp_path.iterdir())
