import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from bitsweep.runtime import gpu
from bitsweep.runtime.environment import Gpu, current_gpu
from tests.devices import on_a_gpu

L4 = Gpu(model="NVIDIA L4", architecture="sm89")


def test_a_machine_without_a_gpu_is_told_what_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "current_gpu", lambda: None)
    expected = "backend.device=cuda: there is no NVIDIA GPU here; use backend.device=cpu"
    assert gpu.no_gpu() == gpu.no_gpu_for_pytorch() == expected
    monkeypatch.setattr(gpu, "current_gpu", lambda: L4)
    assert gpu.no_gpu() is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA GPU here")
def test_without_a_driver_and_without_its_package_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert current_gpu.__wrapped__() is None
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert current_gpu.__wrapped__() is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch sees the GPU here")
@pytest.mark.parametrize(("build", "hint"), [("13.0", "install a driver for CUDA 13.0"), (None, "build without CUDA")])
def test_a_gpu_that_pytorch_does_not_see_has_a_cure(
    build: str | None, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "current_gpu", lambda: L4)
    monkeypatch.setattr(torch.version, "cuda", build)
    reason = gpu.no_gpu_for_pytorch()
    assert reason is not None
    assert f"PyTorch {torch.__version__.partition('+')[0]}" in reason
    assert hint in reason
    assert reason.endswith("or use backend.device=cpu")


@contextmanager
def _tf32_kept() -> Iterator[None]:
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


@pytest.mark.parametrize("allowed", [False, True])
def test_float32_is_rounded_only_if_asked_for(allowed: bool) -> None:
    """By PyTorch's settings for each operation, of which convolutions have another default than products."""
    with _tf32_kept():
        gpu.allow_tf32(allowed)
        matmul, conv = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
        assert [each == "tf32" for each in (matmul, conv)] == [allowed, allowed]


@on_a_gpu
def test_memory_in_use_is_what_was_allocated() -> None:
    torch.zeros(1, device="cuda")
    before = gpu.used_mb()
    held = torch.zeros(512 << 20, dtype=torch.uint8, device="cuda")
    assert gpu.used_mb() - before == pytest.approx(held.nbytes / 1e6, abs=50)


@on_a_gpu
def test_events_measure_the_device_and_not_the_queueing() -> None:
    matrix = torch.randn(4096, 4096, device="cuda")
    stream = torch.cuda.current_stream()

    def queue() -> None:
        for _ in range(20):
            matrix @ matrix

    for _ in range(2):
        queue()
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    queue()
    end.record()
    end.synchronize()
    assert gpu.elapsed_ms(queue, stream.cuda_stream) == pytest.approx(start.elapsed_time(end), rel=0.3)
    assert gpu.new_stream() != gpu.new_stream()
