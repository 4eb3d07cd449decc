"""NNCF's own post-training quantization, measured by the same protocol as all else."""

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, final

from pydantic import Field

from bitsweep.config.configurable import Count, configurable
from bitsweep.config.method import Method
from bitsweep.config.precision import Grid, Precision, Scheme
from bitsweep.errors import CompressionError, MissingPackage, first_line
from bitsweep.results import Compression, Shape, Splits

if TYPE_CHECKING:
    import onnx
    import torch

    from bitsweep.data.batches import Batches

_WEIGHTS = Grid(bits=8, signed=True, symmetric=True, per_channel=True)
_ACTIVATIONS = Grid(bits=8, signed=False, symmetric=False)


@final
@configurable
class Nncf(Method):
    """``nncf.quantize`` of the network's ONNX file, with what NNCF chooses by itself. Engines get the file it makes.

    Attributes:
        preset: of NNCF: ``performance``, activations symmetric around 0; ``mixed``, affine.
        calibration_images: training images that NNCF watches, at most.
        calibration_seed: which of them; added to the cell's seed.
    """

    makes_files: ClassVar[bool] = True
    package: ClassVar[str] = "nncf"
    extra: ClassVar[str] = "nncf"

    preset: Literal["performance", "mixed"] = "performance"
    calibration_images: Count = 256
    calibration_seed: Annotated[int, Field(ge=0)] = 0

    def unsupported(self, precision: Precision) -> str | None:
        """NNCF makes int8, and chooses granularity and symmetry itself."""
        if (precision.weights, precision.activations) == (_WEIGHTS, _ACTIVATIONS):
            return None
        return f"method={self.name} makes int8 as NNCF chooses, not {precision.name}: choose precision=int8 as it is"

    def takes_exported(self, scheme: Scheme) -> bool:
        """What is quantized is the file of the exported network."""
        return True

    def calibrated_on(self, available: int, scheme: Scheme) -> int:
        """As many as there are, up to ``calibration_images``."""
        return min(self.calibration_images, available)

    def compress(
        self, model: "torch.nn.Module", splits: Splits, *, input_shape: Shape, scheme: Scheme, seed: int
    ) -> Compression:
        """Write the network as ONNX, let NNCF quantize it, and read back what that means."""
        from dataclasses import replace

        import onnx

        from bitsweep.data.batches import Batches
        from bitsweep.data.sampling import calibration_images
        from bitsweep.graphs import tracing
        from bitsweep.graphs.lifting import program_of
        from bitsweep.graphs.onnx.network import for_any_batch, network_of
        from bitsweep.lowering.onnx.export import export_onnx
        from bitsweep.quantization.quantized_already import with_its_quantizations

        images = calibration_images(splits, self.calibration_images, seed + self.calibration_seed)
        graph, _ = tracing.folded(model, input_shape=input_shape)
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "network.onnx"
            export_onnx(program_of(graph), file)
            given = self._quantized(
                _named_by_weights(onnx.load(file)),
                Batches(images=images, splits=splits, input_shape=input_shape, size=1),
            )
            onnx.save(given, file)
            network = for_any_batch(network_of(file), input_shape)
        found = with_its_quantizations(network, input_shape=input_shape)
        layers = tuple(
            replace(layer, reason="NNCF leaves it in float") if layer.weights == "float32" else layer
            for layer in found.layers
        )
        return replace(found, layers=layers, given=given)

    def _quantized(self, model: "onnx.ModelProto", images: "Batches") -> "onnx.ModelProto":
        """What NNCF makes of a file.

        Raises:
            MissingPackage: it is not installed.
            CompressionError: it does not take the network.
        """
        import logging

        from bitsweep.lowering.onnx.export import INPUT

        os.environ.setdefault("NNCF_CI", "true")  # or it reports each use to its makers
        try:
            import nncf
        except ImportError:
            raise MissingPackage(self.package, self.extra) from None
        nncf.set_log_level(logging.ERROR)
        dataset = nncf.Dataset(images, lambda image: {INPUT: image.numpy()})
        preset = nncf.QuantizationPreset(self.preset)
        try:
            with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
                return nncf.quantize(model, dataset, preset=preset, subset_size=len(images))
        except Exception as error:  # whatever NNCF raises of networks that it does not know
            raise CompressionError(
                f"method={self.name}: NNCF does not take this network: {first_line(error)}"
            ) from error


def _named_by_weights(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A file whose layers have the names of their modules, which NNCF keeps; those of weights it does not."""
    taken = {node.name for node in model.graph.node}
    for node in model.graph.node:
        name = node.input[1].removesuffix(".weight") if len(node.input) > 1 else ""
        if name and name != node.input[1] and name not in taken:
            node.name = name
            taken.add(name)
    return model
