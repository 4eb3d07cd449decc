"""PyTorch itself, operation by operation: as the meaning of every program, and as an engine for the float ones."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from bitsweep.artifacts import Array, Kernel
from bitsweep.axes import Backend, Grid, Precision, Runner, Scheme, axis, storage_only
from bitsweep.environment import Cpu

if TYPE_CHECKING:
    from torch.export import ExportedProgram

PROGRAM = "program.pt2"


@axis
class Eager(Backend):
    """Runs a program op by op. The artifact is a ``torch.export`` file."""

    channels_last: ClassVar[bool]

    def scheme(self, precision: Precision, cpu: Cpu) -> Scheme:
        """Integer grids to the letter, simulated. Half precision is storage only where the CPU does not compute it:
        PyTorch would emulate it, at a crawl."""
        if isinstance(precision.weights, Grid) or isinstance(precision.activations, Grid):
            return Scheme(weights=precision.weights, activations=precision.activations, arithmetic="simulated")
        computes = cpu.computes_fp16 if precision.weights == "float16" else cpu.computes_bf16
        return storage_only(precision, computes=computes, where=f"this CPU ({cpu.isa})")

    def lower(self, program: "ExportedProgram", folder: Path) -> None:
        """Write the program, narrow codes packed."""
        from bitsweep.programs import save_program

        save_program(program, folder / PROGRAM)

    def load(self, folder: Path, *, threads: int) -> Runner:
        """Load the program; parameters stored in half precision are cast to float32 here, once."""
        import torch

        from bitsweep.programs import load_program, runner_of

        torch.set_num_threads(threads)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return runner_of(load_program(folder / PROGRAM), memory_format=layout)

    def kernels(self, folder: Path, images: Array, *, threads: int) -> tuple[Kernel, ...]:
        """The operations of the program, all of them in float."""
        import torch

        from bitsweep.programs import kernels_of, load_program

        torch.set_num_threads(threads)
        return kernels_of(load_program(folder / PROGRAM), images)


@final
@axis
class Reference(Eager):
    """What a compressed network means: accuracy and size of every precision, but a latency of no interest."""

    timed: ClassVar[bool] = False
    channels_last: ClassVar[bool] = False

    def unsupported(self, precision: Precision) -> str | None:
        """Nothing is."""
        return None


@final
@axis
class TorchEager(Eager):
    """What a network runs on when nothing is done about deployment: float kernels, channels last."""

    channels_last: ClassVar[bool] = True
    runner: ClassVar[str] = "torch_export"
    runner_needs: ClassVar[tuple[str, ...]] = ("torch",)

    def unsupported(self, precision: Precision) -> str | None:
        """Integer codes would be computed in float: that is the reference, whose latency means nothing."""
        if not precision.is_integer:
            return None
        return (
            f"backend=torch has no integer kernels for {precision.name}: "
            "use backend=onnxruntime to run it, or backend=reference for its accuracy and size"
        )
