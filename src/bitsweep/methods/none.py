"""No compression: the trained network as it is, exported with its batch normalisation folded."""

from typing import TYPE_CHECKING, final

from bitsweep.artifacts import Compression, Splits
from bitsweep.axes import Method, Precision, Scheme, axis

if TYPE_CHECKING:
    import torch


@final
@axis
class NoCompression(Method):
    """The fp32 network that every compressed one is compared with."""

    def unsupported(self, precision: Precision) -> str | None:
        """Everything but fp32 needs a method that compresses."""
        if precision.weights == precision.activations == "float32":
            return None
        return f"method=none leaves the network in fp32, not {precision.name}: choose precision=fp32 or method=ptq"

    def compress(
        self, model: "torch.nn.Module", splits: Splits, *, image_size: int, scheme: Scheme, seed: int
    ) -> Compression:
        """Export the float network."""
        from bitsweep.quantization import graphs
        from bitsweep.quantization.folding import fold_batch_norm
        from bitsweep.quantization.notes import layer_notes

        graph = graphs.trace(model, image_size=image_size)
        fold_batch_norm(graph)
        layers = layer_notes(graph, graphs.layers(graph))
        return Compression(program=graphs.export(graph, image_size=image_size), layers=layers)
