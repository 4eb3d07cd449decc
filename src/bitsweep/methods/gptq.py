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
        from bitsweep.quantization import inputs
        from bitsweep.quantization.gptq import gptq_codes
        from bitsweep.quantization.walk import layer_units, round_units
        from bitsweep.quantization.weights import Codes

        def choose(stop: "Stop") -> dict[str, Codes]:
            (layer,), (path,) = stop.unit.layers, stop.weight_paths
            weight, groups = stop.originals[path], inputs.groups_of(layer)
            scale, zero_point = self.weight_qparams(weight, grid)
            (batches,) = stop.rounded_inputs.values()
            seen = (inputs.patches(x, layer, weight) for x in batches)
            codes = gptq_codes(
                inputs.weight_matrix(weight, groups),
                inputs.gram((patch, patch) for patch in seen),
                inputs.by_group(scale, groups),
                inputs.by_group(zero_point, groups),
                grid,
                damping=self.damping,
                by_diagonal=self.by_diagonal,
            )
            return {path: Codes.from_float(codes.reshape(weight.shape), scale, zero_point, grid)}

        return round_units(graph, layer_units(graph), batches, choose)
