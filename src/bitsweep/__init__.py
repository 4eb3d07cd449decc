"""Which compressed image classifier to ship, and why to believe it: sweeps from Python, see `bitsweep.api`."""

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitsweep.api import compare, compress, describe, grid, load, lower, plan, run, space

__all__ = ["compare", "compress", "describe", "grid", "load", "lower", "plan", "run", "space"]

# Warnings of how packages use PyTorch when they are imported, and of nodes that have no line in a user's file.
for _of in ("torch.utils._pytree", "torch.utils.cpp_extension", "torch.onnx._internal.exporter._core"):
    logging.getLogger(_of).setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    """Import what is public when it is asked for: every process of a sweep imports this module."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bitsweep import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return __all__
