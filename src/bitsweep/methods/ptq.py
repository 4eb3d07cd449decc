"""Post-training quantization: every value goes to the nearest code of a grid, or to half precision."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, final

from pydantic import Field

from bitsweep.artifacts import Compression, Splits
from bitsweep.axes import Count, Grid, Method, Precision, Scheme, axis

if TYPE_CHECKING:
    import torch

    from bitsweep.quantization.observers import ChooseRange


@final
@axis
class PostTrainingQuantization(Method):
    """Nearest rounding, with ranges from the weights themselves and from a few training images.

    Attributes:
        activation_range: ``minmax``, ``percentile``, or ``mse``, the range with the least squared error.
        percentile: of the activations, in percent, when that is what ends their range.
        weight_range: ``minmax``, or ``mse``, which shrinks it to where the squared error is least.
        calibration_images: training images on which activations are watched, at most.
        calibration_batch: images at a time.
    """

    activation_range: Literal["minmax", "percentile", "mse"] = "mse"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    weight_range: Literal["minmax", "mse"] = "minmax"
    calibration_images: Count = 256
    calibration_batch: Count = 32

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
        from bitsweep.quantization.ranges import minmax_weight_range, mse_weight_range
        from bitsweep.quantization.weights import nearest_codes, round_weights, store_codes
        from bitsweep.splits import calibration_images, preprocessed

        graph = graphs.trace(model, image_size=image_size)
        fold_batch_norm(graph)
        originals = graphs.layers(graph)
        if isinstance(scheme.weights, Grid):
            choose_range = minmax_weight_range if self.weight_range == "minmax" else mse_weight_range
            codes = round_weights(graph, partial(nearest_codes, grid=scheme.weights, choose_range=choose_range))
            if isinstance(scheme.activations, Grid):
                images = calibration_images(splits, self.calibration_images, seed)
                batches = preprocessed(images, splits, image_size=image_size, batch=self.calibration_batch)
                graph = quantize_activations(graph, scheme.activations, self._choose_range(), batches)
            store_codes(graph, codes)
        elif scheme.activations == "float32":
            casting.store_as(graph, getattr(torch, scheme.weights))
        else:
            casting.compute_in(graph, getattr(torch, scheme.weights))
        return Compression(program=graphs.export(graph, image_size=image_size), layers=layer_notes(graph, originals))

    def _choose_range(self) -> "ChooseRange":
        from bitsweep.quantization.ranges import minmax_range, mse_range, percentile_range

        if self.activation_range == "percentile":
            return partial(percentile_range, percentile=self.percentile)
        return {"minmax": minmax_range, "mse": mse_range}[self.activation_range]
