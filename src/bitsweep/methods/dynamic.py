"""Dynamic quantization: weights ahead of time, activations while the network runs, linear layers only."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, final

from bitsweep.config.configurable import configurable
from bitsweep.config.method import Method
from bitsweep.config.precision import Grid, Precision, Scheme
from bitsweep.errors import CompressionError
from bitsweep.results import Compression, LayerRecord, Shape, Splits, Table

if TYPE_CHECKING:
    import torch


@final
@configurable
class DynamicQuantization(Method):
    """Nearest rounding of the weights of linear layers, which then take codes; all else stays in float32.

    Attributes:
        weight_range: ``minmax``, or ``mse`` for the least squared error.
    """

    weight_range: Literal["minmax", "mse"] = "minmax"

    def unsupported(self, precision: Precision) -> str | None:
        """Bytes on both sides; those of activations as every engine finds them at run time."""
        weights, activations = precision.weights, precision.activations
        if not isinstance(weights, Grid) or not weights.signed or weights.bits > 8:
            return f"method={self.name} multiplies signed codes of up to 8 bits, not {weights}: choose precision=int8"
        if activations != Grid(bits=8, signed=False, symmetric=False):
            return (
                f"method={self.name} finds u8 per-tensor affine activations at run time, not {activations}: "
                "choose precision=int8, int4, int3, int2 or ternary, whose activations are such"
            )
        return None

    def takes_exported(self, scheme: Scheme) -> bool:
        """What is rounded is the graph of the network."""
        return True

    def compress(
        self, model: "torch.nn.Module", splits: Splits, *, input_shape: Shape, scheme: Scheme, seed: int
    ) -> Compression:
        """Round the weights of linear layers, and quantize their inputs."""
        from bitsweep.graphs import ops, tracing
        from bitsweep.graphs.lifting import program_of
        from bitsweep.quantization import dynamic
        from bitsweep.quantization.calibration import ranges
        from bitsweep.quantization.layer_records import layer_records
        from bitsweep.quantization.weights import nearest_codes, store_codes

        assert isinstance(scheme.weights, Grid) and isinstance(scheme.activations, Grid)
        choose_range = ranges.mse_weight_range if self.weight_range == "mse" else ranges.minmax_weight_range
        graph, _ = tracing.folded(model, input_shape=input_shape)
        originals = ops.layers(graph)
        macs = [dynamic.macs(graph, layer) for layer in originals]
        weights = [ops.arguments(layer)[1] for layer in dynamic.linear_layers(graph)]
        codes = {
            str(weight.target): nearest_codes(ops.attribute(graph, weight), scheme.weights, choose_range)
            for weight in weights
        }
        if not codes:
            raise CompressionError(
                f"method={self.name} quantizes linear layers, of which the network has none; choose method=ptq"
            )
        dynamic.quantize_reads(graph, scheme.activations)
        store_codes(graph, codes)
        records = tuple(
            record
            if record.kind == "linear"
            else replace(record, reason="only linear layers are quantized at run time")
            for record in layer_records(graph, originals)
        )
        return Compression(program=program_of(graph), layers=records, tables=(_coverage(records, macs),))


def _coverage(records: Iterable[LayerRecord], macs: Iterable[int]) -> Table:
    """How much of the network each kind of layer holds, and in what format that is computed."""
    totals: dict[tuple[str, str], list[int]] = {}
    for record, count in zip(records, macs, strict=True):
        total = totals.setdefault((record.kind, record.activations), [0, 0, 0])
        for index, more in enumerate((1, record.parameters, count)):
            total[index] += more
    parameters, operations = (sum(total[index] for total in totals.values()) for index in (1, 2))
    return Table(
        name="coverage",
        columns=("layers", "count", "parameters_share", "mac_share"),
        rows=tuple(
            (f"{kind}, {activations}", count, held / parameters, done / operations)
            for (kind, activations), (count, held, done) in totals.items()
        ),
    )
