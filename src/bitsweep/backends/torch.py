"""PyTorch in eager mode: what a network runs on when nothing is done about deployment."""

from pathlib import Path
from typing import TYPE_CHECKING, final

from bitsweep.artifacts import Array, Kernel
from bitsweep.axes import Backend, Precision, Runner, Scheme, axis, storage_only
from bitsweep.environment import Cpu

if TYPE_CHECKING:
    from torch.export import ExportedProgram

PROGRAM = "program.pt2"


@final
@axis
class TorchEager(Backend):
    """Float kernels of PyTorch, operation by operation, channels last. The artifact is a ``torch.export`` file."""

    def unsupported(self, precision: Precision) -> str | None:
        """Integer codes would be computed in float: that is the reference, whose latency means nothing."""
        if not precision.is_integer:
            return None
        return (
            f"backend=torch has no integer kernels for {precision.name}: "
            "use backend=onnxruntime to run it, or backend=reference for its accuracy and size"
        )

    def scheme(self, precision: Precision, cpu: Cpu) -> Scheme:
        """Half precision is storage only where the CPU does not compute it; PyTorch would emulate it, at a crawl."""
        computes = cpu.computes_fp16 if precision.weights == "float16" else cpu.computes_bf16
        return storage_only(precision, computes=computes, where=f"this CPU ({cpu.isa})")

    def lower(self, program: "ExportedProgram", folder: Path) -> None:
        """Write the program as it is."""
        import torch

        torch.export.save(program, folder / PROGRAM)

    def load(self, folder: Path, *, threads: int) -> Runner:
        """Load the program; parameters stored in half precision are cast to float32 here, once."""
        import torch

        from bitsweep.programs import load_program, runner_of

        torch.set_num_threads(threads)
        return runner_of(load_program(folder / PROGRAM), memory_format=torch.channels_last)

    def kernels(self, folder: Path, images: Array, *, threads: int) -> tuple[Kernel, ...]:
        """The operations of the program."""
        import torch

        from bitsweep.programs import kernels_of, load_program

        torch.set_num_threads(threads)
        return kernels_of(load_program(folder / PROGRAM), images)
