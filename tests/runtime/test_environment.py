from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bitsweep.runtime import environment
from bitsweep.runtime.environment import Cpu, Gpu, current_gpu, release_of, version_of


def test_a_release_has_no_label_of_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (about := tmp_path / "labelled-2.1.dist-info").mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: labelled\nVersion: 2.1+cpu\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert (version_of("labelled"), release_of("labelled")) == ("2.1+cpu", "2.1")
    assert release_of("no-such-distribution") == "absent"


def test_the_gpu_is_the_one_that_pytorch_sees() -> None:
    gpu = current_gpu()
    if not torch.cuda.is_available():
        assert gpu is None
    else:
        assert gpu is not None
        assert gpu.model == torch.cuda.get_device_name(0)
        assert gpu.architecture == "sm{}{}".format(*torch.cuda.get_device_capability(0))


@pytest.mark.parametrize(
    ("architecture", "fp16", "bf16"),
    [("sm61", False, False), ("sm75", True, False), ("sm80", True, True), ("sm120", True, True)],
)
def test_what_a_gpu_computes_follows_from_its_architecture(architecture: str, fp16: bool, bf16: bool) -> None:
    gpu = Gpu(model="any", architecture=architecture)
    assert (gpu.computes_fp16, gpu.computes_bf16) == (fp16, bf16)
    assert str(gpu) == f"GPU ({architecture})"


def test_versions_are_of_what_is_declared_and_of_what_plug_ins_use() -> None:
    versions = environment.describe("wheel-of-a-plug-in", "pytest")["versions"]
    assert {"torch", "onnxruntime", "mlflow", "numpy", "pytest"} <= versions.keys()
    assert not {"ruff", "wheel-of-a-plug-in"} & versions.keys()
    assert versions["torch"] == version_of("torch")


def test_a_package_may_come_in_its_build_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert version_of("some-package") == "absent"
    monkeypatch.setitem(environment._GPU_BUILDS, "other-package", "torch")
    assert version_of("other-package") == version_of("torch") != "absent"


def test_other_systems_tell_the_same_of_a_cpu() -> None:
    pytest.importorskip("cpuinfo")
    model, flags = environment._read_by_cpuinfo()
    linux = environment.current_cpu()
    assert model == linux.model
    assert replace(linux, flags=flags).isa == linux.isa
    assert replace(linux, flags=flags).computes_bf16 == linux.computes_bf16


@pytest.mark.parametrize(
    ("architecture", "cpuinfo", "model", "isa"),
    [
        ("x86_64", "model name : Xeon\nflags : avx2 avx512_vnni\n", "Xeon", "avx512_vnni"),
        ("aarch64", "processor : 0\nFeatures : fp asimd asimddp\n", "", "asimddp"),
        ("aarch64", "model name : Xeon\nflags : avx2 avx512_vnni\n", "aarch64 (emulated)", "aarch64"),
        ("x86_64", "model name : VirtualApple\nFeatures : fp asimd\n", "x86_64 (emulated)", "x86_64"),
        ("riscv64", "isa : rv64imafdc\n", "", "riscv64"),
    ],
)
def test_the_flags_of_the_machine_below_an_emulator_are_not_its_own(
    architecture: str, cpuinfo: str, model: str, isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(environment, "_CPUINFO", tmp_path / "cpuinfo")
    found = environment._read_from_linux(architecture)
    assert found[0] == model
    cpu = Cpu(model=found[0], architecture=architecture, flags=found[1])
    assert (cpu.isa, cpu.is_emulated) == (isa, model.endswith("(emulated)"))
