"""GPTQ: each input's rounding error is made up for by the inputs that are still to be rounded."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, final

from pydantic import Field

from bitsweep.axes import Grid, axis
from bitsweep.quantization.calibrated import CalibratedMethod

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule

    from bitsweep.quantization.walk import Stop
    from bitsweep.quantization.weights import Codes


@final
@axis
class Gptq(CalibratedMethod):
    """Rounds layer by layer on what the network rounded so far yields.

    Attributes:
        damping: share of the mean of the Hessian's diagonal that is added to it.
        by_diagonal: inputs with the most energy first, instead of in their order.
    """

    damping: Annotated[float, Field(gt=0)] = 0.01
    by_diagonal: bool = True

    def round_weights(
        self, graph: "GraphModule", grid: Grid, batches: "Sequence[torch.Tensor]", *, seed: int
    ) -> "dict[str, Codes]":
        """Round layer after layer."""
        from bitsweep.quantization.gptq import gptq_layer, hessian_of
        from bitsweep.quantization.walk import layer_units, round_units

        def choose(stop: "Stop") -> "dict[str, Codes]":
            (layer,), (path,), (reads,) = stop.unit.layers, stop.weight_paths, stop.rounded_inputs.values()
            weight = stop.originals[path]
            return {
                path: gptq_layer(
                    layer, weight, hessian_of(layer, weight, reads), self.weight_qparams(weight, grid), grid,
                    damping=self.damping, by_diagonal=self.by_diagonal,
                )
            }  # fmt: skip

        return round_units(graph, layer_units(graph), batches, choose)
