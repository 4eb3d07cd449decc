"""LiteRT, the runtime of TensorFlow Lite for phones and boards, with the kernels of XNNPACK for x86 and ARM."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from bitsweep.config.backend import Backend, InferenceFn
from bitsweep.config.configurable import configurable
from bitsweep.config.precision import Grid, Precision, Scheme
from bitsweep.config.schemes import beyond_byte_kernels, signed_codes
from bitsweep.errors import damaged, require_images
from bitsweep.results import Array, OpProfile
from bitsweep.runtime.batches import in_batches_of
from bitsweep.runtime.environment import Cpu

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@final
@configurable
class LiteRt(Backend):
    """The artifact is one ``.tflite`` file for one image at a time; loading and running it imports no PyTorch."""

    artifact: ClassVar[str] = "model.tflite"
    package: ClassVar[str] = "litert-torch"
    extra: ClassVar[str] = "litert"
    deploy_needs: ClassVar[tuple[str, ...]] = ("ai-edge-litert",)
    deploy_with: ClassVar[tuple[str, ...]] = ("bitsweep.runtime.batches",)

    def unsupported(self, precision: Precision) -> str | None:
        """Integer kernels multiply codes of 8 bits with a zero point by weights around 0."""
        if reason := beyond_byte_kernels(precision, self.name):
            return reason
        weights, activations = precision.weights, precision.activations
        if not isinstance(weights, Grid) or not isinstance(activations, Grid):
            if weights != "float32":
                return f"backend=litert would cast {weights} weights in every run: use backend=onnxruntime"
            return None
        if not weights.symmetric:
            return f"LiteRT takes no {weights} weights: use backend=onnxruntime"
        if activations.symmetric or activations.bits != 8:
            return f"LiteRT's activations have all codes of a byte, not {activations} ones: use backend=onnxruntime"
        return None

    def scheme(self, precision: Precision, cpu: Cpu) -> Scheme:
        """Activations are signed codes; half precision is storage only. No product saturates."""
        return signed_codes(precision, cpu, engine="LiteRT")

    def lower(self, program: "ExportedProgram", folder: Path) -> None:
        """Write the program, and read it to see that LiteRT takes it."""
        engine = self._engine
        with self.importing():
            from bitsweep.backends.litert.lowering import export_litert
        export_litert(program, folder / self.artifact, taken_by=engine.interpreter)

    def load(self, folder: Path, *, threads: int) -> InferenceFn:
        """Load the file, without what writes such files."""
        interpreter = self._interpreter(folder, threads=threads)
        shape = tuple(map(int, interpreter.get_input_details()[0]["shape"][1:]))
        infer = in_batches_of(1, self._engine.inference_fn(interpreter))

        def run(images: Array) -> Array:
            require_images(images, shape)
            return infer(images)

        return run

    def profile(self, folder: Path, images: Array, *, threads: int) -> tuple[OpProfile, ...]:
        """The operations of the file, which XNNPACK or LiteRT itself executes as they are."""
        interpreter = self._interpreter(folder, threads=threads)
        from bitsweep.backends.litert.operations import operations_of

        return operations_of(interpreter, images=len(images))

    def _interpreter(self, folder: Path, *, threads: int) -> Any:
        """The file, ready to run.

        Raises:
            StoreError: it is missing, or damaged.
        """
        path = folder / self.artifact
        engine = self._engine
        try:
            return engine.interpreter(path, threads=threads)
        except (ValueError, RuntimeError) as error:
            raise damaged(path, error) from error

    @property
    def _engine(self) -> Any:
        """What runs artifacts."""
        with self.importing():
            import ai_edge_litert.interpreter  # noqa: F401 - what deploy.py imports only once

            from bitsweep.backends.litert import deploy
        return deploy
