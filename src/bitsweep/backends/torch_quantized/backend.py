"""PyTorch's own integer kernels: those of FBGEMM, oneDNN or QNNPACK, run by its TorchScript interpreter."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, final

from bitsweep.config.backend import Backend, InferenceFn
from bitsweep.config.configurable import configurable
from bitsweep.config.precision import Grid, Precision, Scheme
from bitsweep.config.schemes import beyond_byte_kernels, float_arithmetic, reduce_range
from bitsweep.errors import CompressionError, ConfigError, first_line
from bitsweep.results import Array, OpProfile
from bitsweep.runtime.environment import Cpu, current_cpu

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@final
@configurable
class QuantizedKernels(Backend):
    """The kernels of ``torch.ops.quantized``. The artifact is one TorchScript file, which needs nothing but PyTorch.

    Attributes:
        engine: who multiplies: ``fbgemm`` and ``onednn`` on x86, ``qnnpack`` on ARM too. Additions and functions of
            activations are PyTorch's own.
    """

    artifact: ClassVar[str] = "model.pt"
    deploy_needs: ClassVar[tuple[str, ...]] = ("torch",)

    engine: Literal["fbgemm", "onednn", "qnnpack"]

    def unsupported(self, precision: Precision) -> str | None:
        """Integer kernels multiply bytes, oneDNN's only by weights around 0."""
        if self.engine == "fbgemm" and (architecture := current_cpu().architecture) != "x86_64":
            return f"PyTorch has backend={self.name} on x86 only, not on {architecture}: use backend=qnnpack"
        if reason := beyond_byte_kernels(precision, self.name):
            return reason
        if self.engine == "onednn" and isinstance(precision.weights, Grid) and not precision.weights.symmetric:
            return f"oneDNN's kernels take no {precision.weights} weights: use backend=fbgemm"
        return None

    def scheme(self, precision: Precision, cpu: Cpu) -> Scheme:
        """Weights have 7 bits where sums of products would saturate: QNNPACK's never do, FBGEMM's on every x86 CPU.
        Half precision is storage only where the CPU does not compute it. Kernels of layers yield codes alone."""
        weights, activations = precision.weights, precision.activations
        if isinstance(weights, Grid) and isinstance(activations, Grid):
            plain = Scheme(weights=weights, activations=activations, arithmetic="integer", yields_floats=False)
            if self.engine == "qnnpack":
                return plain
            # Signed codes are shifted to unsigned ones before they are multiplied.
            unsigned = replace(precision, activations=replace(activations, signed=False, symmetric=False))
            reduced = reduce_range(unsigned, cpu)
            scheme = replace(plain, weights=reduced.weights, why=reduced.why)
            if self.engine == "fbgemm" and cpu.architecture == "x86_64" and not scheme.why and weights.bits == 8:
                depthwise = "FBGEMM's depthwise kernels saturate sums of two u8 x s8 products"
                if cpu.flags & {"avx512_vnni"}:
                    why = f"{depthwise}: weights of depthwise layers have 7 bits"
                    return replace(scheme, weights=replace(weights, depthwise_bits=7), why=why)
                why = f"{depthwise}, and its others without AVX512-VNNI: weights have 7 bits"
                return replace(scheme, weights=replace(weights, bits=7), why=why)
            return scheme
        return float_arithmetic(precision, cpu)

    def lower(self, program: "ExportedProgram", folder: Path) -> None:
        """Put kernels in the place of operations on codes, and write the graph as TorchScript."""
        from bitsweep.backends.torch_quantized.lowering import lowered
        from bitsweep.backends.torch_quantized.torchscript import save_script
        from bitsweep.graphs.program import image_shape

        self._choose_engine()
        try:
            save_script(lowered(program), folder / self.artifact, image_shape=image_shape(program))
        except RuntimeError as error:
            reason = first_line(error)
            raise CompressionError(f"backend={self.name} does not take the program: {reason}") from error

    def load(self, folder: Path, *, threads: int) -> InferenceFn:
        """Load the file, and pack its weights for this CPU."""
        import torch

        from bitsweep.backends.torch_quantized.torchscript import load_script

        self._choose_engine()
        torch.set_num_threads(threads)
        return load_script(folder / self.artifact)

    def profile(self, folder: Path, images: Array, *, threads: int) -> tuple[OpProfile, ...]:
        """What ran, as PyTorch's dispatcher saw it."""
        import torch

        from bitsweep.backends.torch_quantized.torchscript import executed

        self._choose_engine()
        torch.set_num_threads(threads)
        return executed(folder / self.artifact, images)

    def _choose_engine(self) -> None:
        import torch

        engines = torch.backends.quantized.supported_engines
        if self.engine not in engines:
            raise ConfigError(f"backend.engine={self.engine}: PyTorch on this CPU has {', '.join(engines)}")
        torch.backends.quantized.engine = self.engine
