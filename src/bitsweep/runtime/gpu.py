"""An NVIDIA GPU by its driver alone: memory in use, and time on the device. Importing this imports no engine.

Engines of one process share its primary context on the GPU, so that what the driver reports is true of each of them.
"""

import functools
from collections.abc import Callable
from typing import Any

from bitsweep.runtime.environment import current_gpu, of_driver, version_of


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
    free, total = of_driver(_driver().cuMemGetInfo())
    return float(total - free) / 1e6


def new_stream() -> int:
    """Handle of a stream of one's own, which lives as long as the process."""
    (stream,) = of_driver(_driver().cuStreamCreate(0))
    return int(stream)


def elapsed_ms(queue: Callable[[], object], stream: int) -> float:
    """How long the GPU takes for what a call queues in a stream, between two of CUDA's events.

    Args:
        queue: may return before the work is done.
        stream: handle of the stream; 0 for the default one.
    """
    driver = _driver()
    (start,), (end,) = of_driver(driver.cuEventCreate(0)), of_driver(driver.cuEventCreate(0))
    try:
        of_driver(driver.cuEventRecord(start, stream))
        queue()
        of_driver(driver.cuEventRecord(end, stream))
        of_driver(driver.cuEventSynchronize(end))
        (elapsed,) = of_driver(driver.cuEventElapsedTime(start, end))
    finally:
        for event in (start, end):
            of_driver(driver.cuEventDestroy(event))
    return float(elapsed)


@functools.cache
def _driver() -> Any:
    """The driver, with the primary context of the first GPU current in this thread."""
    from cuda.bindings import driver

    of_driver(driver.cuInit(0))
    (device,) = of_driver(driver.cuDeviceGet(0))
    (context,) = of_driver(driver.cuDevicePrimaryCtxRetain(device))
    of_driver(driver.cuCtxSetCurrent(context))
    return driver
