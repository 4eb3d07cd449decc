"""Torch-TensorRT: TensorRT's kernels for floats inside PyTorch, in engines that are made on the GPU that runs them."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from bitsweep.config.backend import Backend, InferenceFn, OnDevice
from bitsweep.config.configurable import Count, configurable
from bitsweep.config.precision import Precision, Scheme
from bitsweep.config.schemes import beyond_byte_kernels, float_arithmetic
from bitsweep.results import Array, OpProfile
from bitsweep.runtime import gpu
from bitsweep.runtime.environment import Cpu, current_cpu, current_gpu

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@final
@configurable
class TorchTensorRt(Backend):
    """The whole program as one engine, strongly typed: every operation has the type that the program gives it.

    Attributes:
        max_batch: images that the engine takes at once; it is optimized for one.
        tf32: whether float32 layers may round what they multiply to 10 bits of mantissa.
    """

    artifact: ClassVar[str] = "model.engine"
    package: ClassVar[str] = "torch-tensorrt"
    extra: ClassVar[str] = "torch-tensorrt"
    portable: ClassVar[bool] = False

    max_batch: Count = 64
    tf32: bool = False

    def unsupported(self, precision: Precision) -> str | None:
        """Converters are for floats that the GPU computes, and nothing is made where there is no GPU."""
        if reason := beyond_byte_kernels(precision, self.name):
            return reason
        if precision.is_integer:
            return f"Torch-TensorRT converts float programs, and {precision.name} is none: use backend=tensorrt"
        if reason := gpu.no_gpu_for_pytorch(asked=f"backend={self.name}", instead="backend=tensorrt"):
            return reason
        if self.scheme(precision, current_cpu()).why:
            return (
                f"backend={self.name} would store {precision.weights} weights as float32 here: use backend=onnxruntime"
            )
        return None

    @property
    def on_gpu(self) -> bool:
        """Always."""
        return True

    def scheme(self, precision: Precision, cpu: Cpu) -> Scheme:
        """Half precision where the GPU computes it."""
        gpu = current_gpu()
        assert gpu is not None
        return float_arithmetic(precision, gpu)

    def lower(self, program: "ExportedProgram", folder: Path) -> None:
        """Build the engine, for which TensorRT times its kernels on the GPU."""
        self._require()
        from bitsweep.backends.torch_tensorrt.lowering import build_engine

        build_engine(program, folder, max_batch=self.max_batch, tf32=self.tf32)

    def load(self, folder: Path, *, threads: int) -> InferenceFn:
        """Load the engine, to be run by PyTorch; each run copies images to the GPU and logits back."""
        self._require()
        import torch

        from bitsweep.backends.torch_tensorrt.lowering import inference_fn

        torch.set_num_threads(threads)
        return inference_fn(folder, max_batch=self.max_batch)

    def load_on_device(self, folder: Path, images: Array, *, threads: int) -> OnDevice:
        """Load the engine and a batch; PyTorch runs it and lets its current stream wait for the end."""
        self._require()
        import torch

        from bitsweep.backends.torch_tensorrt.lowering import on_gpu

        torch.set_num_threads(threads)
        return on_gpu(folder, images, max_batch=self.max_batch)

    def profile(self, folder: Path, images: Array, *, threads: int) -> tuple[OpProfile, ...]:
        """The layers of the engine, as it reports them."""
        self._require()
        from bitsweep.backends.torch_tensorrt.lowering import profile_of

        return profile_of(folder, images)

    def _require(self) -> None:
        with self.importing():
            import torch_tensorrt  # noqa: F401
