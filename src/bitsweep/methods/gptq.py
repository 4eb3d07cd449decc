"""GPTQ: inputs that are rounded later compensate each input's rounding error."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, final

from pydantic import Field

from bitsweep.config.configurable import configurable
from bitsweep.config.precision import Grid
from bitsweep.quantization.calibrated import CalibratedMethod

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule

    from bitsweep.quantization.layerwise import UnitInputs
    from bitsweep.quantization.weights import Codes


@final
@configurable
class Gptq(CalibratedMethod):
    """Rounds layer by layer, on outputs of the network rounded so far.

    Attributes:
        damping: share of the mean of the Hessian's diagonal that is added to it.
        act_order: inputs with the most energy first, instead of in their order.
    """

    keeps_inputs: ClassVar[bool] = True

    damping: Annotated[float, Field(gt=0)] = 0.01
    act_order: bool = True

    def round_weights(
        self, graph: "GraphModule", grid: Grid, batches: "Sequence[torch.Tensor]", *, seed: int
    ) -> "dict[str, Codes]":
        """Round layer after layer."""
        from bitsweep.quantization.layerwise import layer_units, round_units
        from bitsweep.quantization.rounding.gptq import gptq_layer, hessian_of

        def choose(given: "UnitInputs") -> "dict[str, Codes]":
            (layer,), (path,), (inputs,) = given.unit.layers, given.weight_paths, given.rounded_inputs.values()
            weight = given.originals[path]
            return {
                path: gptq_layer(
                    layer, weight, hessian_of(layer, weight, inputs), self.weight_qparams(weight, grid), grid,
                    damping=self.damping, act_order=self.act_order,
                )
            }  # fmt: skip

        return round_units(graph, layer_units(graph), batches, choose)
