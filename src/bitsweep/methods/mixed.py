"""Mixed precision: as many bits for each layer as it needs, found by measuring."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, final

from pydantic import Field

from bitsweep.config.configurable import Count, Several, configurable
from bitsweep.config.dataset import Part
from bitsweep.config.precision import Grid, Scheme
from bitsweep.errors import CompressionError
from bitsweep.quantization.quantizing import QuantizingMethod
from bitsweep.results import Compression, Shape, Splits, Table

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule, Node

    from bitsweep.quantization.analysis.bit_allocation import Study
    from bitsweep.quantization.layerwise import UnitInputs
    from bitsweep.quantization.weights import Codes

_TRADE_OFF = ("network", "weights MB", "top-1 %", "expected to become wrong, %")
Bits = Annotated[int, Field(ge=2, le=16)]


@final
@configurable
class MixedPrecision(QuantizingMethod):
    """Measures what every layer does to the network at every number of bits, and gives bits where they help most.

    Under a budget of accuracy it takes the smallest network on the way from most to fewest bits that keeps it, as the
    noise in its logits with all layers rounded lets expect; under one of size, the first that fits.

    Attributes:
        bits: those that layers can have, besides the precision's own; more than these are left out.
        drop_pp: percentage points of top-1 that fewer bits may lose, as expected from the studied images; used with
            ``accuracy``.
        size_share: of the size of all weights with the precision's own bits; used with ``size``.
        rounding: ``nearest``, or ``gptq`` on the network rounded so far.
        damping: of GPTQ.
        study_images: validation images, at most.
    """

    bits: Annotated[Several[Bits], Field(min_length=1)] = (8, 6, 4, 3, 2)
    budget: Literal["accuracy", "size"] = "accuracy"
    drop_pp: Annotated[float, Field(ge=0)] = 1.0
    size_share: Annotated[float, Field(gt=0, le=1)] = 0.6
    rounding: Literal["nearest", "gptq"] = "gptq"
    damping: Annotated[float, Field(gt=0)] = 0.01
    study_images: Count = 256

    def learns_from(self) -> Part:
        """Validation images."""
        return "validation"

    def compress(
        self, model: "torch.nn.Module", splits: Splits, *, input_shape: Shape, scheme: Scheme, seed: int
    ) -> Compression:
        """Study, choose, and round."""
        from bitsweep.data.sampling import validation_batches
        from bitsweep.graphs import ops
        from bitsweep.quantization.analysis.bit_allocation import Study
        from bitsweep.quantization.analysis.sensitivity import layer_paths
        from bitsweep.quantization.fitting import fitting, told
        from bitsweep.quantization.layerwise import parameters_of

        assert isinstance(scheme.weights, Grid)
        most = scheme.weights.bits
        choices = [replace(scheme.weights, bits=b) for b in sorted({most, *(b for b in self.bits if b < most)})[::-1]]
        prepared = self.prepared(model, splits, input_shape=input_shape, scheme=scheme, seed=seed)
        graph, batches = prepared.graph, prepared.batches
        originals, parameters = ops.layers(graph), parameters_of(graph)
        fitted = fitting(graph, batches)
        labelled = list(validation_batches(splits, self.study_images, input_shape=input_shape, seed=seed))
        study = Study(
            graph=graph,
            parameters=parameters,
            paths=layer_paths(graph),
            labelled=labelled,
            codes=self._round_for_every_choice(graph, choices, fitted),
            activations=self.input_qparams(graph, scheme.activations, batches),
        )
        chosen, tables = self._choose(study)
        codes = prepared.guarded.kept(graph, self._round(graph, chosen, fitted), parameters)
        tables = (*told(batches, fitted), *tables)
        return self.finished(prepared, codes, originals=originals, scheme=scheme, tables=tables, parameters=parameters)

    def _round_for_every_choice(
        self, graph: "GraphModule", choices: Sequence[Grid], batches: "Sequence[torch.Tensor]"
    ) -> "dict[str, dict[Grid, Codes]]":
        """Codes of every layer on every grid, for its inputs in the float network; by the path of the weights."""
        from bitsweep.quantization.layerwise import layer_units, layerwise, parameters_of

        parameters, codes = parameters_of(graph), {}
        for given in layerwise(graph, layer_units(graph), batches, originals=parameters):
            (layer,), (path,), (inputs,) = given.unit.layers, given.weight_paths, given.inputs.values()
            codes[path] = self._codes(layer, parameters[path], choices, inputs)
        return codes

    def _round(
        self, graph: "GraphModule", chosen: Mapping[str, Grid], batches: "Sequence[torch.Tensor]"
    ) -> "dict[str, Codes]":
        """Round, in place, every layer to its grid, for its inputs in the network rounded so far."""
        from bitsweep.quantization.layerwise import layer_units, round_units

        def choose(given: "UnitInputs") -> "dict[str, Codes]":
            (layer,), (path,), (inputs,) = given.unit.layers, given.weight_paths, given.rounded_inputs.values()
            return {path: self._codes(layer, given.originals[path], [chosen[path]], inputs)[chosen[path]]}

        return round_units(graph, layer_units(graph), batches, choose)

    def _codes(
        self, layer: "Node", weight: "torch.Tensor", choices: Sequence[Grid], inputs: "Sequence[torch.Tensor]"
    ) -> "dict[Grid, Codes]":
        """Codes of a layer's weights on every grid, by the rounding that was chosen."""
        from bitsweep.quantization.rounding.gptq import gptq_layer, hessian_of
        from bitsweep.quantization.weights import nearest_codes

        if self.rounding == "nearest":
            return {grid: nearest_codes(weight, grid, self.choose_weight_range()) for grid in choices}
        hessian = hessian_of(layer, weight, inputs)
        return {
            grid: gptq_layer(layer, weight, hessian, self.weight_qparams(weight, grid), grid, damping=self.damping)
            for grid in choices
        }

    def _choose(self, study: "Study") -> tuple[dict[str, Grid], tuple[Table, ...]]:
        """A grid for every path of weights, and how it was found.

        Raises:
            CompressionError: no choice of bits is as small as the budget asks for.
        """
        from bitsweep.quantization.analysis.bit_allocation import cheapest_steps, last_that

        harms, sizes = study.harms(), study.sizes()
        steps = [dict(zip(study.codes, step, strict=True)) for step in cheapest_steps(sizes, harms)]
        if self.budget == "size":
            limit = self.size_share * study.megabytes(steps[0])
            fitting = [step for step in steps if study.megabytes(step) <= limit]
            if not fitting:
                raise CompressionError(
                    f"method.size_share={self.size_share}: with the fewest of method.bits={list(self.bits)} "
                    f"the weights take {study.megabytes(steps[-1]):.3g} MB, not {limit:.3g}; allow fewer bits"
                )
            chosen = fitting[0]
            tried = [_tried("chosen", study, chosen)]
        else:
            tried = [_tried("float", study, {}), _tried("most bits", study, steps[0])]
            allowed = tried[-1][3] + self.drop_pp

            def holds(index: int) -> bool:
                tried.append(_tried(f"step {index} of {len(steps) - 1}", study, steps[index]))
                return tried[-1][3] <= allowed

            chosen = steps[last_that(holds, len(steps))]
            tried.sort(key=lambda row: -row[1])
        bits = tuple(
            (path.removesuffix(".weight"), chosen[path].bits, 1000 * harm[chosen[path]])
            for path, harm in zip(study.codes, harms, strict=True)
        )
        return chosen, (
            Table(name="bits", columns=("layer", "bits", "divergence alone, millinats"), rows=bits),
            Table(name="trade_off", columns=_TRADE_OFF, rows=tuple(tried)),
        )


def _tried(name: str, study: "Study", chosen: Mapping[str, Grid]) -> tuple[str, float, float, float]:
    """A row of the table of networks that were tried."""
    effect = study.effect(chosen)
    return name, study.megabytes(chosen), 100 * effect.top1, 100 * effect.expected_loss
