"""Post-training quantization: every value goes to the nearest code of a grid, or to half precision."""

from functools import partial
from typing import TYPE_CHECKING, final

from bitsweep.artifacts import Compression, Splits
from bitsweep.axes import Grid, Precision, Scheme, axis
from bitsweep.quantization.calibrated import CalibratedMethod

if TYPE_CHECKING:
    import torch


@final
@axis
class PostTrainingQuantization(CalibratedMethod):
    """Nearest rounding, with ranges from the weights themselves and from a few training images."""

    def unsupported(self, precision: Precision) -> str | None:
        """Nothing is to be done for fp32; integer activations need integer weights, and half ones half weights."""
        if precision.weights == precision.activations == "float32":
            return "method=ptq has nothing to do in fp32: choose method=none, or a lower precision such as int8"
        if isinstance(precision.weights, Grid):
            if isinstance(precision.activations, Grid) or precision.activations == "float32":
                return None
        elif precision.activations in ("float32", precision.weights):
            return None
        return (
            f"method=ptq cannot compute {precision.activations} activations with {precision.weights} weights: "
            "choose integer weights with integer or float32 activations, or one float format for both"
        )

    def compress(
        self, model: "torch.nn.Module", splits: Splits, *, image_size: int, scheme: Scheme, seed: int
    ) -> Compression:
        """Quantize weights, watch activations on the network with quantized weights, and quantize them."""
        import torch

        from bitsweep.quantization import casting, graphs
        from bitsweep.quantization.folding import fold_batch_norm
        from bitsweep.quantization.notes import layer_notes
        from bitsweep.quantization.quantizer import quantize_activations
        from bitsweep.quantization.weights import nearest_codes, round_weights, store_codes

        graph = graphs.trace(model, image_size=image_size)
        fold_batch_norm(graph)
        originals = graphs.layers(graph)
        if isinstance(scheme.weights, Grid):
            choose_codes = partial(nearest_codes, grid=scheme.weights, choose_range=self.choose_weight_range())
            codes = round_weights(graph, choose_codes)
            if isinstance(scheme.activations, Grid):
                batches = self.calibration_batches(splits, image_size=image_size, seed=seed)
                graph = quantize_activations(graph, scheme.activations, self.choose_activation_range(), batches)
            store_codes(graph, codes)
        elif scheme.activations == "float32":
            casting.store_as(graph, getattr(torch, scheme.weights))
        else:
            casting.compute_in(graph, getattr(torch, scheme.weights))
        return Compression(program=graphs.export(graph, image_size=image_size), layers=layer_notes(graph, originals))
