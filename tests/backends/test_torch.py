from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.export import ExportedProgram

from bitsweep.backends.torch.backend import Reference, TorchEager
from bitsweep.config import backend as backend_module
from bitsweep.config.precision import Grid, Precision, Scheme
from bitsweep.runtime import gpu as gpu_module
from bitsweep.runtime.environment import Cpu, Gpu

ProgramOf = Callable[[Scheme], ExportedProgram]
BACKEND = TorchEager(name="torch")
HALF = Precision(name="fp16", weights="float16", activations="float16")


def _cpu(*flags: str) -> Cpu:
    return Cpu(model="any", architecture="x86_64", flags=frozenset(flags))


def test_integers_are_sent_elsewhere() -> None:
    codes = Grid(bits=8, signed=True, symmetric=True)
    reason = BACKEND.unsupported(Precision(name="int8", weights=codes, activations=codes))
    assert reason is not None
    assert "backend=onnxruntime" in reason
    assert "backend=reference" in reason


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_the_reference_simulates_integers_to_the_letter(bits: int) -> None:
    codes = Grid(bits=bits, signed=True, symmetric=True)
    precision = Precision(name="any", weights=codes, activations=codes)
    reference = Reference(name="reference")
    assert reference.unsupported(precision) is None
    scheme = reference.scheme(precision, _cpu("avx2"))
    assert (scheme.weights, scheme.activations, scheme.arithmetic, scheme.why) == (codes, codes, "simulated", "")
    assert not reference.timed


def test_half_precision_is_computed_where_the_cpu_does() -> None:
    assert BACKEND.scheme(HALF, _cpu("avx512_fp16")).arithmetic == "float16"
    assert BACKEND.scheme(HALF, _cpu("avx512_bf16")).arithmetic == "float32"
    bf16 = Precision(name="bf16", weights="bfloat16", activations="bfloat16")
    assert BACKEND.scheme(bf16, _cpu("avx512_bf16")).arithmetic == "bfloat16"


@pytest.mark.parametrize(
    ("architecture", "kind", "arithmetic"),
    [
        ("sm61", "float16", "float32"),
        ("sm75", "float16", "float16"),
        ("sm75", "bfloat16", "float32"),
        ("sm120", "bfloat16", "bfloat16"),
    ],
)
def test_half_precision_is_computed_where_the_gpu_does(
    architecture: str, kind: str, arithmetic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_module, "current_gpu", lambda: Gpu(model="any", architecture=architecture))
    half = Precision(name="half", weights=kind, activations=kind)  # type: ignore[arg-type]
    scheme = TorchEager(name="torch", device="cuda").scheme(half, _cpu("avx2"))
    assert (scheme.weights, scheme.activations, scheme.arithmetic) == (kind, arithmetic, arithmetic)
    assert (f"this GPU ({architecture}) has no {kind} arithmetic" in scheme.why) == (arithmetic == "float32")
    # The CPU beside it is asked no more.
    assert BACKEND.scheme(half, _cpu("avx2")).arithmetic == "float32"


@pytest.mark.parametrize(
    "backend", [TorchEager(name="torch", device="cuda"), Reference(name="reference", device="cuda")]
)
def test_without_a_gpu_it_is_the_cpu_that_is_named(
    backend: TorchEager | Reference, fp32: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_module, "current_gpu", lambda: None)
    assert backend.unsupported(fp32) == "backend.device=cuda: there is no NVIDIA GPU here; use backend.device=cpu"
    assert BACKEND.unsupported(fp32) is None


def test_stored_halves_take_half_the_file_and_are_cast_once(
    program_of: ProgramOf, images: np.ndarray, tmp_path: Path
) -> None:
    program = program_of(BACKEND.scheme(HALF, _cpu("avx2")))
    assert {value.dtype for value in program.state_dict.values()} == {torch.float16}
    BACKEND.lower(program, tmp_path)
    executed = {kernel.op for kernel in BACKEND.profile(tmp_path, images, threads=1)}
    assert "aten.conv2d.default" in executed
    assert "aten.to.dtype" not in executed


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_set(threads: int, program_of: ProgramOf, fp32: Precision, tmp_path: Path) -> None:
    BACKEND.lower(program_of(BACKEND.scheme(fp32, _cpu())), tmp_path)
    before = torch.get_num_threads()
    try:
        BACKEND.load(tmp_path, threads=threads)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
