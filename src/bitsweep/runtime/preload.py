"""Imports of the fork server, so that its children start with every package that a stage may use."""

import contextlib
import gc

import bitsweep.runtime.preload_measuring  # noqa: F401

gc.disable()  # as there

import torch  # noqa: E402

# A process that has asked the driver for GPUs can fork none that uses one; torchao asks when it is imported.
_is_available, torch.cuda.is_available = torch.cuda.is_available, lambda: False

import onnx  # noqa: E402, F401
import onnxscript.function_libs.torch_lib.ops  # noqa: E402, F401
import torchao.quantization.pt2e.quantize_pt2e  # noqa: E402, F401
import torchvision  # noqa: E402, F401

# Parts of PyTorch that it imports late, and that other versions may have elsewhere.
with contextlib.suppress(ImportError):
    import torch._functorch.aot_autograd
    import torch.onnx._internal.exporter._torchlib.ops

torch.cuda.is_available = _is_available

gc.freeze()
gc.enable()

__all__ = ["torch"]
