"""PyTorch's compiler, Inductor: machine code made ahead of time, with oneDNN's kernels for layers."""

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from bitsweep.config.backend import CpuOrGpu, InferenceFn, OnDevice
from bitsweep.config.configurable import configurable
from bitsweep.config.precision import Grid, Precision, Scheme
from bitsweep.config.schemes import beyond_byte_kernels, float_arithmetic, reduce_range
from bitsweep.results import Array, OpProfile
from bitsweep.runtime import gpu
from bitsweep.runtime.environment import Cpu, current_cpu

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@final
@configurable
class Inductor(CpuOrGpu):
    """Machine code for the processor that it is compiled on: one package that takes any batch, and is loaded as it is.

    On the CPU layers are oneDNN's kernels; on a GPU they are Triton's and PyTorch's, for floats only.
    """

    artifact: ClassVar[str] = "model.pt2"
    portable: ClassVar[bool] = False
    deploy_needs: ClassVar[tuple[str, ...]] = ("torch",)

    def unsupported(self, precision: Precision) -> str | None:
        """Integer kernels multiply unsigned activations by weights around 0; parameters are folded into float32."""
        if shutil.which(_compiler()) is None:
            return (
                f"backend=inductor finds no C++ compiler {_compiler()}: install one, set the environment variable CXX, "
                "or use backend=onnxruntime"
            )
        if reason := (gpu.no_gpu_for_pytorch() if self.on_gpu else None) or beyond_byte_kernels(precision, self.name):
            return reason
        weights, activations = precision.weights, precision.activations
        if not isinstance(weights, Grid) or not isinstance(activations, Grid):
            if self.scheme(precision, current_cpu()).why:
                return f"backend=inductor would store {weights} weights as float32 here: use backend=onnxruntime"
            return None
        if self.on_gpu:
            return "backend=inductor has integer kernels on the CPU only: use backend.device=cpu, or backend=tensorrt"
        if not weights.symmetric:
            return f"oneDNN has no kernels for {weights} weights: use backend=onnxruntime"
        if activations.signed:
            return f"PyTorch's calls of oneDNN take no {activations} activations: use backend=onnxruntime"
        return None

    def scheme(self, precision: Precision, cpu: Cpu) -> Scheme:
        """Half precision where the processor computes it; weights have 7 bits where sums of products would saturate."""
        if precision.is_integer:
            return reduce_range(precision, cpu)
        return float_arithmetic(precision, self.processor(cpu))

    def lower(self, program: "ExportedProgram", folder: Path) -> None:
        """Compile the program, which takes ten seconds and more."""
        from bitsweep.backends.inductor.lowering import compile_package

        self._allow_tf32()
        compile_package(program, folder / self.artifact, device=self.device)

    def load(self, folder: Path, *, threads: int) -> InferenceFn:
        """Load the package, to run on as many threads as PyTorch is set to here."""
        import torch

        from bitsweep.backends.inductor.lowering import inference_fn

        self._allow_tf32()
        torch.set_num_threads(threads)
        return inference_fn(folder / self.artifact)

    def load_on_device(self, folder: Path, images: Array, *, threads: int) -> OnDevice:
        """Load the package and a batch; PyTorch runs it in its current stream."""
        import torch

        from bitsweep.backends.inductor.lowering import on_gpu

        self._allow_tf32()
        torch.set_num_threads(threads)
        return on_gpu(folder / self.artifact, images)

    def profile(self, folder: Path, images: Array, *, threads: int) -> tuple[OpProfile, ...]:
        """What oneDNN ran; multiply-accumulates that are not among these were done by generated code, in float."""
        import torch

        from bitsweep.backends.inductor.lowering import profile_of

        torch.set_num_threads(threads)
        return profile_of(folder / self.artifact, images)

    def _allow_tf32(self) -> None:
        if self.on_gpu:
            gpu.allow_tf32(self.tf32)


def _compiler() -> str:
    """The C++ compiler that Inductor calls."""
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
