"""Which activations of a graph are quantized, as annotations for torchao's PT2E flow.

A pair of quantize and dequantize stands where an integer engine needs one to run an operation on codes:

- on input and output of a convolution or linear layer. When a ReLU (or a clamp from 0) alone takes its output,
  only the ReLU's output has a pair, so that both run as one kernel. A linear layer leaves logits in float;
- on inputs and outputs of additions and products of two activations, averages and smooth activation functions;
- the same pair, with one scale, before and after operations that only select or move values, such as max pooling.

Where nothing that follows computes on codes, a pair would only cost accuracy and time. So a sum that a layer or group
normalisation reads, as it is or moved, in parts or joined, has none, nor its terms: the residual stream of a
transformer stays float. Nor have sums, products, averages and functions of activations that only float operations read,
nor, on engines whose kernels yield floats there, linear layers that these, attention or smooth functions alone read.

One tensor has one pair, whichever nodes take it; a ``Placement`` says which have none. Some functions are constant
beyond certain bounds (hard-swish is 0 below -3): codes are spread within those bounds only.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
)

from bitsweep.config.precision import Grid
from bitsweep.graphs.ops import LAYER_KINDS, aten, is_layer
from bitsweep.quantization.calibration.observers import ActivationObserver, ChooseRange, activation_spec
from bitsweep.quantization.operations import (
    FUNCTIONS,
    RECTIFIERS,
    SMOOTH,
    adds_or_multiplies_codes,
    computed_on_sums,
    computes_function_on_codes,
    ends_in_floats,
    fuses,
    is_activation,
    leads_to_logits,
    makes_logits,
    moves,
    passes_floats,
)
from bitsweep.quantization.overwriting import overwriting


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What about the pairs of a graph is not as its operations alone would have it.

    Attributes:
        fuses_functions: whether there is none between a layer and a function that alone reads it, because the engine
            computes the function on the sums of the layer.
        yields_floats: whether integer kernels of linear layers can yield floats.
        floats: names of the nodes whose outputs have none.
        bounds: by the name of a node, what nobody that reads it can tell values beyond from.
    """

    fuses_functions: bool = False
    yields_floats: bool = True
    floats: frozenset[str] = frozenset()
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def stays_float(self, node: Node) -> bool:
        """Whether the output of a node has no pair."""
        if node.name in self.floats or (self.fuses_functions and computed_on_sums(node)):
            return True
        is_linear = is_layer(node) and LAYER_KINDS[node.target] == "linear"
        return is_linear and self.yields_floats and ends_in_floats(node, SMOOTH)


#: Pairs wherever operations have them.
EVERYWHERE = Placement()


class ActivationQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates the activations of a traced graph, not its weights."""

    def __init__(self, grid: Grid, choose_range: ChooseRange, placement: Placement) -> None:
        super().__init__()
        self.grid = grid
        self.choose_range = choose_range
        self.placement = placement

    def annotate(self, model: GraphModule) -> GraphModule:
        """Write an annotation into every node with codes as input or output."""
        for node in model.graph.nodes:
            if is_layer(node):
                self._annotate(node, inputs=node.args[:1], quantizes_output=not makes_logits(node))
            elif leads_to_logits(node):
                continue
            elif adds_or_multiplies_codes(node):
                self._annotate(node, inputs=node.args[:2])
            elif node.target in RECTIFIERS and fuses(node):
                self._annotate(node, inputs=())
            elif passes_floats(node):
                continue
            elif moves(node) and is_activation(node.args[0]):
                self._share(node, node.args[:1])
            elif computes_function_on_codes(node):
                self._annotate(node, inputs=node.args[:1])
            elif node.target == aten.cat.default and all(map(is_activation, node.args[0])):
                self._share(node, node.args[0])
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing is left to check."""

    def _annotate(self, node: Node, *, inputs: Any, quantizes_output: bool = True) -> None:
        fused = len(node.users) == 1 and fuses(next(iter(node.users)))
        quantizes_output = quantizes_output and not fused and not self.placement.stays_float(node)
        node.meta["quantization_annotation"] = QuantizationAnnotation(
            input_qspec_map={source: self._spec(source) for source in inputs if not self.placement.stays_float(source)},
            output_qspec=self._spec(node) if quantizes_output else None,
            _annotated=True,
        )

    def _share(self, node: Node, sources: Any) -> None:
        if any(map(self.placement.stays_float, (node, *sources))):
            return
        first, *others = sources
        specs: dict[Node, QuantizationSpecBase] = {first: self._spec(first)}
        specs |= {source: SharedQuantizationSpec((first, node)) for source in others if source is not first}
        node.meta["quantization_annotation"] = QuantizationAnnotation(
            input_qspec_map=specs, output_qspec=SharedQuantizationSpec((first, node)), _annotated=True
        )

    def _spec(self, node: Node) -> QuantizationSpecBase:
        """How a tensor is quantized, whichever nodes take it."""
        if node.name in self.placement.bounds:
            return activation_spec(self.grid, self.choose_range, bounds=self.placement.bounds[node.name])
        ends = {FUNCTIONS.get(user.target, (-math.inf, math.inf)) for user in node.users}
        bounds = ends.pop() if len(ends) == 1 else (-math.inf, math.inf)
        return activation_spec(self.grid, self.choose_range, bounds=bounds)


def observe(
    graph: GraphModule, grid: Grid, choose_range: ChooseRange, placement: Placement = EVERYWHERE
) -> GraphModule:
    """Graph with an observer on every activation that is to be quantized.

    Args:
        graph: a traced network without batch normalisation; it is used up.
    """
    observed: GraphModule = prepare_pt2e(graph, ActivationQuantizer(grid, choose_range, placement))
    return observed


def convert(observed: GraphModule) -> tuple[GraphModule, dict[str, float]]:
    """Graph whose activations pass through codes in the place of its observers, which is used up.

    Returns:
        The graph, and what share of each activation's values lay beyond its range, by the name of its node.
    """
    clipped = {}
    for node in observed.graph.nodes:
        observer = observed.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(observer, ActivationObserver):
            clipped[node.args[0].name] = observer.clipped_share
    converted: GraphModule = convert_pt2e(observed, fold_quantize=False)
    return converted, clipped


def quantize_activations(
    graph: GraphModule,
    grid: Grid,
    choose_range: ChooseRange,
    batches: Iterable[torch.Tensor],
    placement: Placement = EVERYWHERE,
) -> tuple[GraphModule, dict[str, float]]:
    """Graph whose activations pass through codes, with ranges chosen on the given images.

    Args:
        graph: a traced network without batch normalisation; it is used up.
        batches: float32 images [N, 3, H, W].

    Returns:
        The same as ``convert``.
    """
    observed = observe(graph, grid, choose_range, placement)
    with torch.no_grad(), overwriting(observed):
        observed.recompile()
        for images in batches:
            observed(images)
    return convert(observed)
