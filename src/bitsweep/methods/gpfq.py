"""GPFQ: greedy path-following quantization of every neuron."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, final

from pydantic import Field

from bitsweep.config.configurable import configurable
from bitsweep.config.precision import Grid, Precision
from bitsweep.quantization.calibrated import CalibratedMethod

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule

    from bitsweep.quantization.layerwise import UnitInputs
    from bitsweep.quantization.rounding.alphabets import Alphabet
    from bitsweep.quantization.weights import Codes


@final
@configurable
class Gpfq(CalibratedMethod):
    """Follows the outputs of the float network input by input, layer by layer.

    Attributes:
        alphabet: ``grid``, the precision's own grid on the ranges of ``weight_range``; ``lybrand`` or ``zhang``, one
            alphabet a layer, spread over a multiple of the median or of the mean of each output's quantile.
        radius: that multiple, C.
        quantile: of the absolute weights of an output; used with ``zhang``.
        form: ``covariance``, whose memory does not grow with the samples, or ``samples``, that of the papers.
        patch_share: random part of a convolution's positions that is looked at.
        threshold: ``soft`` or ``hard`` thresholding, for sparse weights.
        sparsity: the threshold in units of the scale.
        stochastic: round up or down at random, with the expectation of the argument.
    """

    keeps_inputs: ClassVar[bool] = True

    alphabet: Literal["grid", "lybrand", "zhang"] = "grid"
    radius: Annotated[float, Field(gt=0)] = 1.0
    quantile: Annotated[float, Field(gt=0, le=1)] = 1.0
    form: Literal["covariance", "samples"] = "covariance"
    patch_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    threshold: Literal["none", "soft", "hard"] = "none"
    sparsity: Annotated[float, Field(ge=0)] = 0.5
    stochastic: bool = False

    def unsupported(self, precision: Precision) -> str | None:
        """As for its base; and nothing can be sent to 0 where an alphabet has none."""
        grid = precision.weights
        if self.threshold != "none" and self.alphabet == "lybrand" and isinstance(grid, Grid) and not grid.is_ternary:
            return (
                f"method.threshold={self.threshold}: an alphabet of {1 << grid.bits} values has no 0 to send weights "
                "to; choose method.alphabet=grid or zhang, or precision=ternary"
            )
        return super().unsupported(precision)

    def round_weights(
        self, graph: "GraphModule", grid: Grid, batches: "Sequence[torch.Tensor]", *, seed: int
    ) -> "dict[str, Codes]":
        """Round layer after layer."""
        import torch

        from bitsweep.graphs import im2col
        from bitsweep.quantization.layerwise import layer_units, round_units
        from bitsweep.quantization.rounding.alphabets import rounder
        from bitsweep.quantization.rounding.gpfq import gpfq_codes, gpfq_codes_of_samples
        from bitsweep.quantization.weights import Codes

        generator = torch.Generator().manual_seed(seed)

        def patches(given: "UnitInputs") -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            """Of the rounded and of the float network, at the same random positions."""
            (layer,), (path,) = given.unit.layers, given.weight_paths
            (floats,), (rounded,) = given.inputs.values(), given.rounded_inputs.values()
            for x, x_rounded in zip(floats, rounded, strict=True):
                both = [im2col.patches(each, layer, given.originals[path]) for each in (x_rounded, x)]
                positions = both[0].shape[2]
                if x.ndim > 2 and self.patch_share < 1:
                    count = max(1, round(self.patch_share * positions))
                    chosen = torch.randperm(positions, generator=generator)[:count]
                    both = [each[:, :, chosen] for each in both]
                yield both[0], both[1]

        def choose(given: "UnitInputs") -> dict[str, Codes]:
            (layer,), (path,) = given.unit.layers, given.weight_paths
            weight, groups = given.originals[path], im2col.groups_of(layer)
            chosen = self._alphabet(weight, grid)
            to_code = rounder(
                chosen,
                threshold=self.threshold,
                sparsity=self.sparsity,
                generator=generator if self.stochastic else None,
            )
            matrix = im2col.weight_matrix(weight, groups)
            qparams = im2col.by_group(chosen.scale, groups), im2col.by_group(chosen.zero_point, groups)
            pairs = list(patches(given))
            if self.form == "covariance":
                gram = im2col.gram((rounded, rounded) for rounded, _ in pairs)
                cross = im2col.gram(pairs)
                codes = gpfq_codes(matrix, gram, cross, *qparams, to_code)
            else:
                rounded, floats = (torch.cat(each, dim=2) for each in zip(*pairs, strict=True))
                codes = gpfq_codes_of_samples(matrix, floats, rounded, *qparams, to_code)
            codes = codes.reshape(weight.shape)
            return {path: Codes.from_float(codes, chosen.scale, chosen.zero_point, chosen.grid)}

        return round_units(graph, layer_units(graph), batches, choose)

    def _alphabet(self, weight: "torch.Tensor", grid: Grid) -> "Alphabet":
        from bitsweep.quantization.rounding import alphabets

        grid = grid.of_weights(weight.shape)
        if self.alphabet == "zhang":
            return alphabets.zhang_alphabet(weight, grid, radius=self.radius, quantile=self.quantile)
        if self.alphabet == "lybrand":
            return alphabets.lybrand_alphabet(weight, grid, radius=self.radius)
        scale, zero_point = self.weight_qparams(weight, grid)
        return alphabets.Alphabet(grid=grid, scale=scale, zero_point=zero_point)
