"""Methods that round the weights of a trained network, each in its own way."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from bitsweep.config.configurable import configurable
from bitsweep.config.dataset import Part
from bitsweep.config.precision import Grid, Scheme
from bitsweep.quantization.quantizing import QuantizingMethod
from bitsweep.results import Compression, Shape, Splits, Table

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule

    from bitsweep.quantization.weights import Codes


@configurable
class CalibratedMethod(QuantizingMethod):
    """A method that rounds the weights of a trained network in its own way.

    Attributes:
        correct_bias: after rounding, give what every layer yields its means and its scale back, whatever the precision.
            With the guard this is done at 7 bits and more.
        study_images: validation images on which every layer is quantized alone, and left out alone, at most; 0: none.
        keeps_inputs: whether what layers read is kept for all images at once, so that there may be too many of them.
        restores_scales: whether the scales of its weights may change afterwards, so that what layers yield has the
            scale that it has in the float network.
    """

    keeps_inputs: ClassVar[bool] = False
    restores_scales: ClassVar[bool] = True

    correct_bias: bool = False
    study_images: Annotated[int, Field(ge=0)] = 0

    def learns_from(self) -> Part | None:
        """Validation images where layers are studied."""
        return "validation" if self.study_images else None

    @abstractmethod
    def round_weights(
        self, graph: "GraphModule", grid: Grid, batches: "Sequence[torch.Tensor]", *, seed: int
    ) -> "dict[str, Codes]":
        """Round, in place, the weights of every convolution and linear layer.

        Args:
            graph: the float network without batch normalisation.
            batches: calibration images, float32 [N, 3, H, W].

        Returns:
            The codes by the path of the weights; the graph computes with their values.
        """

    def compress(
        self, model: "torch.nn.Module", splits: Splits, *, input_shape: Shape, scheme: Scheme, seed: int
    ) -> Compression:
        """Round weights, then quantize the activations of the rounded network; or cast to half precision."""
        from bitsweep.data.sampling import validation_batches
        from bitsweep.graphs import ops
        from bitsweep.quantization.analysis.sensitivity import sensitivity_table
        from bitsweep.quantization.fitting import fitting, told
        from bitsweep.quantization.layerwise import parameters_of

        if not isinstance(scheme.weights, Grid):
            from bitsweep.quantization.storing import in_half_precision

            return in_half_precision(model, scheme, input_shape=input_shape)
        prepared = self.prepared(model, splits, input_shape=input_shape, scheme=scheme, seed=seed)
        graph, batches = prepared.graph, prepared.batches
        originals, parameters = ops.layers(graph), parameters_of(graph)
        fitted = fitting(graph, batches) if self.keeps_inputs else batches
        codes = self.round_weights(graph, scheme.weights, fitted, seed=seed)
        codes = prepared.guarded.kept(graph, codes, parameters)
        tables: tuple[Table, ...] = told(batches, fitted)
        if self.study_images:
            activations = self.input_qparams(graph, scheme.activations, batches)
            labelled = list(validation_batches(splits, self.study_images, input_shape=input_shape, seed=seed))
            tables += (sensitivity_table(graph, codes, activations, labelled, parameters=parameters),)
        return self.finished(
            prepared, codes, originals=originals, scheme=scheme, tables=tables, parameters=parameters,
            restores_all=self.correct_bias, restores_scales=self.restores_scales,
        )  # fmt: skip
