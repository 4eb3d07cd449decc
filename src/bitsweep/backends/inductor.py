"""PyTorch's compiler, Inductor: machine code made ahead of time, with oneDNN's kernels for layers."""

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from bitsweep.artifacts import Array, Kernel
from bitsweep.axes import (
    Backend,
    Grid,
    Precision,
    Runner,
    Scheme,
    axis,
    beyond_byte_kernels,
    reduce_range,
    storage_only,
)
from bitsweep.environment import Cpu, current_cpu

if TYPE_CHECKING:
    from torch.export import ExportedProgram

MODEL = "model.pt2"


@final
@axis
class Inductor(Backend):
    """Machine code for the CPU that it is compiled on, in one package that takes any batch and is loaded as it is."""

    portable: ClassVar[bool] = False
    runner: ClassVar[str] = "inductor"
    runner_needs: ClassVar[tuple[str, ...]] = ("torch",)

    def unsupported(self, precision: Precision) -> str | None:
        """Integer kernels multiply unsigned activations by weights around 0; parameters are folded into float32."""
        if shutil.which(_compiler()) is None:
            return (
                f"backend=inductor finds no C++ compiler {_compiler()}: install one, set the environment variable CXX, "
                "or use backend=onnxruntime"
            )
        if reason := beyond_byte_kernels(precision, self.name):
            return reason
        weights, activations = precision.weights, precision.activations
        if not isinstance(weights, Grid) or not isinstance(activations, Grid):
            if self.scheme(precision, current_cpu()).why:
                return f"backend=inductor would store {weights} weights as float32 on this CPU: use backend=onnxruntime"
            return None
        if not weights.symmetric:
            return f"oneDNN has no kernels for {weights} weights: use backend=onnxruntime"
        if activations.signed:
            return f"PyTorch's calls of oneDNN take no {activations} activations: use backend=onnxruntime"
        return None

    def scheme(self, precision: Precision, cpu: Cpu) -> Scheme:
        """Half precision where the CPU computes it; weights have 7 bits where sums of products would saturate."""
        if precision.is_integer:
            return reduce_range(precision, cpu)
        computes = cpu.computes_fp16 if precision.weights == "float16" else cpu.computes_bf16
        return storage_only(precision, computes=computes, where=f"this CPU ({cpu.isa})")

    def lower(self, program: "ExportedProgram", folder: Path) -> None:
        """Compile the program, which takes ten seconds and more."""
        from bitsweep.lowering.inductor import compile_package

        compile_package(program, folder / MODEL)

    def load(self, folder: Path, *, threads: int) -> Runner:
        """Load the package, to run on as many threads as PyTorch is set to here."""
        import torch

        from bitsweep.lowering.inductor import runner_of

        torch.set_num_threads(threads)
        return runner_of(folder / MODEL)

    def kernels(self, folder: Path, images: Array, *, threads: int) -> tuple[Kernel, ...]:
        """What oneDNN ran; multiply-accumulates that are not among these were done by generated code, in float."""
        import torch

        from bitsweep.lowering.inductor import kernels_of

        torch.set_num_threads(threads)
        return kernels_of(folder / MODEL, images)


def _compiler() -> str:
    """The C++ compiler that Inductor calls."""
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
