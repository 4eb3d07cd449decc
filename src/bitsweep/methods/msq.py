"""Memoryless scalar quantization: the nearest element of an alphabet, weight by weight."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, final

from pydantic import Field

from bitsweep.config.configurable import configurable
from bitsweep.config.precision import Grid
from bitsweep.quantization.calibrated import CalibratedMethod

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule

    from bitsweep.quantization.weights import Codes


@final
@configurable
class Msq(CalibratedMethod):
    """Nearest rounding to one alphabet a layer.

    Attributes:
        alphabet: ``lybrand``, spread over a multiple of the median; ``zhang``, over a multiple of the mean of each
            output's quantile.
        radius: that multiple, C.
        quantile: of the absolute weights of an output; used with ``zhang``.
    """

    alphabet: Literal["lybrand", "zhang"] = "zhang"
    radius: Annotated[float, Field(gt=0)] = 1.0
    quantile: Annotated[float, Field(gt=0, le=1)] = 1.0

    def round_weights(
        self, graph: "GraphModule", grid: Grid, batches: "Sequence[torch.Tensor]", *, seed: int
    ) -> "dict[str, Codes]":
        """Round every layer on its own."""
        from bitsweep.quantization.rounding import alphabets
        from bitsweep.quantization.weights import Codes, round_weights

        def choose(weight: "torch.Tensor") -> Codes:
            own = grid.of_weights(weight.shape)
            if self.alphabet == "lybrand":
                chosen = alphabets.lybrand_alphabet(weight, own, radius=self.radius)
            else:
                chosen = alphabets.zhang_alphabet(weight, own, radius=self.radius, quantile=self.quantile)
            codes = alphabets.rounder(chosen)(weight, chosen.scale, chosen.zero_point)
            return Codes.from_float(codes, chosen.scale, chosen.zero_point, chosen.grid)

        return round_weights(graph, choose)
