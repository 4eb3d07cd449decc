"""An NVIDIA GPU by its driver alone: memory in use, and time on the device. Importing this imports no engine.

Engines of one process share its primary context on the GPU, so that what the driver reports is true of each of them.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

from bitsweep.runtime.environment import current_gpu, version_of


def no_gpu(*, asked: str = "backend.device=cuda", instead: str = "backend.device=cpu") -> str | None:
    """Why what was asked for cannot be had on this machine, with the hint; None where there is a GPU."""
    return None if current_gpu() else f"{asked}: there is no NVIDIA GPU here; use {instead}"


def no_gpu_for_pytorch(*, asked: str = "backend.device=cuda", instead: str = "backend.device=cpu") -> str | None:
    """The same for what runs in PyTorch; None where PyTorch sees a GPU."""
    if reason := no_gpu(asked=asked, instead=instead):
        return reason
    import torch

    if torch.cuda.is_available():
        return None
    cuda = torch.version.cuda
    hint = f"install a driver for CUDA {cuda}" if cuda else "it is a build without CUDA, install one with it"
    return f"{asked}: PyTorch {version_of('torch')} sees no GPU; {hint}, or use {instead}"


def allow_tf32(allowed: bool) -> None:
    """Let PyTorch's float32 layers on a GPU round what they multiply to 10 bits of mantissa, or forbid it."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


# --------------------------------------------------------------------------- the driver


def used_mb() -> float:
    """Memory of the GPU that is in use, by any process, in 10^6 bytes."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return (total.value - free.value) / 1e6


def new_stream() -> int:
    """Handle of a stream of one's own, which lives as long as the process."""
    stream = ctypes.c_void_p()
    _call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(0))
    assert stream.value
    return stream.value


def elapsed_ms(queue: Callable[[], object], stream: int) -> float:
    """How long the GPU takes for what a call queues in a stream, between two of CUDA's events.

    Args:
        queue: may return before the work is done.
        stream: handle of the stream; 0 for the default one.
    """
    start, end = _new_event(), _new_event()
    try:
        _call("cuEventRecord", start, ctypes.c_void_p(stream))
        queue()
        _call("cuEventRecord", end, ctypes.c_void_p(stream))
        _call("cuEventSynchronize", end)
        elapsed = ctypes.c_float()
        _call("cuEventElapsedTime", ctypes.byref(elapsed), start, end)
    finally:
        for event in (start, end):
            _call("cuEventDestroy_v2", event)
    return elapsed.value


def _new_event() -> ctypes.c_void_p:
    event = ctypes.c_void_p()
    _call("cuEventCreate", ctypes.byref(event), ctypes.c_uint(0))
    return event


def _call(function: str, *args: Any) -> None:
    _check(_driver(), function, *args)


def _check(driver: ctypes.CDLL, function: str, *args: Any) -> None:
    if status := getattr(driver, function)(*args):
        raise RuntimeError(f"CUDA's driver: {function} ended with {status}")


@functools.cache
def _driver() -> ctypes.CDLL:
    """The driver, with the primary context of the first GPU current in this thread."""
    driver = ctypes.CDLL("libcuda.so.1")
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _check(driver, "cuInit", ctypes.c_uint(0))
    _check(driver, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
    _check(driver, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    _check(driver, "cuCtxSetCurrent", context)
    return driver
