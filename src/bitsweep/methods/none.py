"""No compression: the trained network as it is, exported with its batch normalisation folded."""

from typing import TYPE_CHECKING, final

from bitsweep.config.configurable import configurable
from bitsweep.config.method import Method
from bitsweep.config.precision import Precision, Scheme
from bitsweep.results import Compression, Shape, Splits

if TYPE_CHECKING:
    import torch


@final
@configurable
class NoCompression(Method):
    """The fp32 network that every compressed one is compared with."""

    def unsupported(self, precision: Precision) -> str | None:
        """Everything but fp32 needs a method that compresses."""
        if precision.weights == precision.activations == "float32":
            return None
        return f"method=none leaves the network in fp32, not {precision.name}: choose precision=fp32 or method=ptq"

    def compress(
        self, model: "torch.nn.Module", splits: Splits, *, input_shape: Shape, scheme: Scheme, seed: int
    ) -> Compression:
        """Export the float network."""
        from bitsweep.graphs import ops, tracing
        from bitsweep.graphs.lifting import program_of
        from bitsweep.quantization.layer_records import layer_records

        graph, normalized = tracing.folded(model, input_shape=input_shape)
        layers = layer_records(graph, ops.layers(graph))
        return Compression(program=program_of(graph), layers=layers, normalized=normalized)
