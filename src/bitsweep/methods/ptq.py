"""Post-training quantization: every value goes to the nearest code of a grid, or to half precision."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, final

from bitsweep.config.configurable import configurable
from bitsweep.config.precision import Grid
from bitsweep.quantization.calibrated import CalibratedMethod

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule

    from bitsweep.quantization.weights import Codes


@final
@configurable
class PostTrainingQuantization(CalibratedMethod):
    """Nearest rounding, with ranges from the weights themselves and from a few training images."""

    supports_half: ClassVar[bool] = True

    def round_weights(
        self, graph: "GraphModule", grid: Grid, batches: "Sequence[torch.Tensor]", *, seed: int
    ) -> "dict[str, Codes]":
        """Round every weight to the nearest code."""
        from bitsweep.quantization.weights import nearest_codes, round_weights

        return round_weights(graph, partial(nearest_codes, grid=grid, choose_range=self.choose_weight_range()))
