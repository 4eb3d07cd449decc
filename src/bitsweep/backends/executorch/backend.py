"""ExecuTorch, PyTorch's runtime for phones and the like, with the kernels of XNNPACK for x86 and ARM."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from bitsweep.config.backend import Backend, InferenceFn
from bitsweep.config.configurable import Count, configurable
from bitsweep.config.precision import Grid, Precision, Scheme
from bitsweep.config.schemes import beyond_byte_kernels, signed_codes
from bitsweep.results import Array, OpProfile
from bitsweep.runtime.environment import Cpu

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@final
@configurable
class ExecuTorch(Backend):
    """XNNPACK's kernels. The artifact is one file, with parameters in the layout that these need.

    Attributes:
        max_batch: most images that the artifact takes at once.
    """

    artifact: ClassVar[str] = "model.pte"
    package: ClassVar[str] = "executorch"
    extra: ClassVar[str] = "executorch"
    deploy_needs: ClassVar[tuple[str, ...]] = ("executorch", "torch")

    max_batch: Count = 1024

    def unsupported(self, precision: Precision) -> str | None:
        """Integer kernels multiply codes that fit in a byte, by weights around 0."""
        if reason := beyond_byte_kernels(precision, self.name):
            return reason
        weights = precision.weights
        if isinstance(weights, Grid):
            return None if weights.symmetric else f"XNNPACK takes no {weights} weights: use backend=onnxruntime"
        if weights != "float32":
            return f"backend=executorch would cast {weights} weights in every run: use backend=onnxruntime"
        return None

    def scheme(self, precision: Precision, cpu: Cpu) -> Scheme:
        """Activations are signed codes; half precision is storage only. No product saturates."""
        return signed_codes(precision, cpu, engine="XNNPACK")

    def lower(self, program: "ExportedProgram", folder: Path) -> None:
        """Write the program, layers and most of what is between them delegated to XNNPACK."""
        self._require()
        from bitsweep.backends.executorch.lowering import export_executorch

        export_executorch(program, folder / self.artifact, max_batch=self.max_batch)

    def load(self, folder: Path, *, threads: int) -> InferenceFn:
        """Load the file, without what writes such files."""
        self._require()
        from bitsweep.backends.executorch.runtime import inference_fn

        return inference_fn(folder / self.artifact, threads=threads)

    def profile(self, folder: Path, images: Array, *, threads: int) -> tuple[OpProfile, ...]:
        """What XNNPACK executed."""
        self._require()
        from bitsweep.backends.executorch.runtime import profile_of

        return profile_of(folder / self.artifact, images, threads=threads)

    def _require(self) -> None:
        with self.importing():
            import executorch.extension.pybindings.portable_lib  # noqa: F401
