"""PyTorch itself, operation by operation: as the meaning of every program, and as an engine for the float ones."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from bitsweep.config.backend import CpuOrGpu, InferenceFn, OnDevice
from bitsweep.config.configurable import configurable
from bitsweep.config.precision import Grid, Precision, Scheme
from bitsweep.config.schemes import float_arithmetic
from bitsweep.results import Array, OpProfile
from bitsweep.runtime import gpu
from bitsweep.runtime.environment import Cpu

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@configurable
class Eager(CpuOrGpu):
    """Runs a program op by op. The artifact is a ``torch.export`` file, the same for every device."""

    artifact: ClassVar[str] = "program.pt2"
    channels_last: ClassVar[bool]

    def scheme(self, precision: Precision, cpu: Cpu) -> Scheme:
        """Integer grids to the letter, simulated. Half precision is storage only where the processor does not compute
        it: PyTorch would emulate it, at a crawl."""
        if isinstance(precision.weights, Grid) or isinstance(precision.activations, Grid):
            return Scheme(weights=precision.weights, activations=precision.activations, arithmetic="simulated")
        return float_arithmetic(precision, self.processor(cpu))

    def lower(self, program: "ExportedProgram", folder: Path) -> None:
        """Write the program, narrow codes packed."""
        from bitsweep.graphs.program import save_program

        save_program(program, folder / self.artifact)

    def load(self, folder: Path, *, threads: int) -> InferenceFn:
        """Load the program; parameters stored in half precision are cast to float32 here, once."""
        from bitsweep.graphs.program import inference_fn, load_program

        layout = self._prepare(threads)
        return inference_fn(load_program(folder / self.artifact), memory_format=layout, device=self.device)

    def load_on_device(self, folder: Path, images: Array, *, threads: int) -> OnDevice:
        """Load the program and a batch; PyTorch runs it in its current stream."""
        from bitsweep.graphs.program import load_program, on_gpu

        layout = self._prepare(threads)
        return on_gpu(load_program(folder / self.artifact), images, memory_format=layout)

    def _prepare(self, threads: int) -> Any:
        """Set PyTorch up, and return the memory layout of images and weights."""
        import torch

        torch.set_num_threads(threads)
        if self.on_gpu:
            gpu.allow_tf32(self.tf32)
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def profile(self, folder: Path, images: Array, *, threads: int) -> tuple[OpProfile, ...]:
        """The operations of the program, all of them in float, on every device the same."""
        import torch

        from bitsweep.graphs.program import load_program, profile_of

        torch.set_num_threads(threads)
        return profile_of(load_program(folder / self.artifact), images)


@final
@configurable
class Reference(Eager):
    """Defines what a compressed network computes: accuracy and size of every precision, but no useful latency."""

    timed: ClassVar[bool] = False
    channels_last: ClassVar[bool] = False

    def unsupported(self, precision: Precision) -> str | None:
        """Nothing is, where the device is there."""
        return gpu.no_gpu_for_pytorch() if self.on_gpu else None


@final
@configurable
class TorchEager(Eager):
    """PyTorch eager mode, as without any deployment: float kernels, channels last."""

    channels_last: ClassVar[bool] = True
    deploy_needs: ClassVar[tuple[str, ...]] = ("torch",)
    deploy_with: ClassVar[tuple[str, ...]] = ("bitsweep.graphs.archive",)

    def unsupported(self, precision: Precision) -> str | None:
        """Integer codes would be computed in float: that is the reference, whose latency means nothing."""
        if not precision.is_integer:
            return gpu.no_gpu_for_pytorch() if self.on_gpu else None
        return (
            f"backend=torch has no integer kernels for {precision.name}: "
            "use backend=onnxruntime to run it, or backend=reference for its accuracy and size"
        )
