"""Learned rounding: AdaRound layer by layer, BRECQ block by block."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, final

from pydantic import Field

from bitsweep.config.configurable import Count, configurable
from bitsweep.config.precision import Grid
from bitsweep.quantization.calibrated import CalibratedMethod

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule

    from bitsweep.quantization.layerwise import UnitInputs
    from bitsweep.quantization.weights import Codes


@final
@configurable
class LearnedRounding(CalibratedMethod):
    """Learns whether each weight goes up or down, so that outputs are reconstructed.

    Attributes:
        unit: whose output: of each ``layer`` with its activation function (AdaRound), or of each ``block`` that one
            tensor enters and one leaves, such as a residual block (BRECQ).
        iterations, batch, lr: of Adam, for each unit.
        regularization: weight of the term that drives each weight to one side.
        warmup_share: part of the iterations without that term.
    """

    keeps_inputs: ClassVar[bool] = True

    unit: Literal["layer", "block"]
    iterations: Count = 1000
    batch: Count = 32
    lr: Annotated[float, Field(gt=0)] = 0.01
    regularization: Annotated[float, Field(ge=0)] = 0.01
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.2

    def round_weights(
        self, graph: "GraphModule", grid: Grid, batches: "Sequence[torch.Tensor]", *, seed: int
    ) -> "dict[str, Codes]":
        """Round unit after unit."""
        import torch

        from bitsweep.quantization.layerwise import activated_units, block_units, round_units
        from bitsweep.quantization.rounding.reconstruction import Schedule, SoftRounding, reconstruct

        schedule = Schedule(
            iterations=self.iterations,
            batch=self.batch,
            lr=self.lr,
            warmup_share=self.warmup_share,
            regularization=self.regularization,
        )
        generator = torch.Generator().manual_seed(seed)

        def choose(given: "UnitInputs") -> "dict[str, Codes]":
            soft = {}
            for path in given.weight_paths:
                weight = given.originals[path]
                soft[path] = SoftRounding(weight, *self.weight_qparams(weight, grid), grid.of_weights(weight.shape))
            return reconstruct(given, soft, schedule, generator)

        units = activated_units(graph) if self.unit == "layer" else block_units(graph)
        return round_units(graph, units, batches, choose)
