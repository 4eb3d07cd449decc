"""The meaning of a compressed network: its program, operation by operation in PyTorch. Nothing here is worth timing."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from bitsweep.artifacts import Array, Kernel
from bitsweep.axes import Backend, Grid, Precision, Runner, Scheme, axis, storage_only
from bitsweep.environment import Cpu

if TYPE_CHECKING:
    from torch.export import ExportedProgram

PROGRAM = "program.pt2"


@final
@axis
class Reference(Backend):
    """Every precision on any machine, with codes computed in float32. The artifact is a ``torch.export`` file."""

    timed: ClassVar[bool] = False

    def unsupported(self, precision: Precision) -> str | None:
        """Nothing is."""
        return None

    def scheme(self, precision: Precision, cpu: Cpu) -> Scheme:
        """Integer grids to the letter, simulated; half precision as PyTorch computes it on this CPU."""
        if isinstance(precision.weights, Grid) or isinstance(precision.activations, Grid):
            return Scheme(weights=precision.weights, activations=precision.activations, arithmetic="simulated")
        computes = cpu.computes_fp16 if precision.weights == "float16" else cpu.computes_bf16
        return storage_only(precision, computes=computes, where=f"this CPU ({cpu.isa})")

    def lower(self, program: "ExportedProgram", folder: Path) -> None:
        """Write the program as it is."""
        import torch

        torch.export.save(program, folder / PROGRAM)

    def load(self, folder: Path, *, threads: int) -> Runner:
        """Load the program."""
        import torch

        from bitsweep.programs import load_program, runner_of

        torch.set_num_threads(threads)
        return runner_of(load_program(folder / PROGRAM))

    def kernels(self, folder: Path, images: Array, *, threads: int) -> tuple[Kernel, ...]:
        """The operations of the program, all of them in float."""
        import torch

        from bitsweep.programs import kernels_of, load_program

        torch.set_num_threads(threads)
        return kernels_of(load_program(folder / PROGRAM), images)
