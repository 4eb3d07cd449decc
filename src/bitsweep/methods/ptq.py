"""Post-training quantization: every value goes to the nearest code of a grid, or to half precision."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, final

from bitsweep.artifacts import Compression, Splits
from bitsweep.axes import Grid, Precision, Scheme, axis
from bitsweep.quantization.calibrated import CalibratedMethod

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule

    from bitsweep.quantization.weights import Codes


@final
@axis
class PostTrainingQuantization(CalibratedMethod):
    """Nearest rounding, with ranges from the weights themselves and from a few training images."""

    def unsupported(self, precision: Precision) -> str | None:
        """Nothing is to be done for fp32; half precision is one format for both, or storage."""
        if precision.weights == precision.activations == "float32":
            return "method=ptq has nothing to do in fp32: choose method=none, or a lower precision such as int8"
        if isinstance(precision.weights, Grid):
            return super().unsupported(precision)
        if precision.activations in ("float32", precision.weights):
            return None
        return (
            f"method={self.name} cannot compute {precision.activations} activations with {precision.weights} weights: "
            "choose integer weights with integer or float32 activations, or one float format for both"
        )

    def compress(
        self, model: "torch.nn.Module", splits: Splits, *, image_size: int, scheme: Scheme, seed: int
    ) -> Compression:
        """Round, or cast for the float formats."""
        if isinstance(scheme.weights, Grid):
            return super().compress(model, splits, image_size=image_size, scheme=scheme, seed=seed)
        import torch

        from bitsweep.quantization import casting, graphs
        from bitsweep.quantization.folding import fold_batch_norm
        from bitsweep.quantization.notes import layer_notes

        graph = graphs.trace(model, image_size=image_size)
        fold_batch_norm(graph)
        originals = graphs.layers(graph)
        if scheme.activations == "float32":
            casting.store_as(graph, getattr(torch, scheme.weights))
        else:
            casting.compute_in(graph, getattr(torch, scheme.weights))
        return Compression(program=graphs.export(graph, image_size=image_size), layers=layer_notes(graph, originals))

    def round_weights(
        self, graph: "GraphModule", grid: Grid, batches: "Sequence[torch.Tensor]", *, seed: int
    ) -> "dict[str, Codes]":
        """Round every weight to the nearest code."""
        from bitsweep.quantization.weights import nearest_codes, round_weights

        return round_weights(graph, partial(nearest_codes, grid=grid, choose_range=self.choose_weight_range()))
