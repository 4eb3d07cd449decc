"""Which activations of a graph are quantized, as annotations for torchao's PT2E flow.

A pair of quantize and dequantize stands where an integer engine needs one to run an operation on codes:

- on input and output of a convolution or linear layer. When a ReLU (or a clamp from 0) alone takes its output,
  only the ReLU's output has a pair, so that both run as one kernel. A linear layer leaves logits in float;
- on inputs and outputs of additions and products of two activations, averages and smooth activation functions;
- the same pair, with one scale, before and after operations that only select or move values, such as max pooling.

Where nothing that follows computes on codes, a pair would only cost accuracy and time. So a sum that a layer
normalisation reads, as it is or moved, in parts or joined, has none, nor its terms: the residual stream of a
transformer stays float. Nor has the output of a linear layer that only attention, such a sum or a smooth function
reads, on engines whose kernels yield floats there.

One tensor has one pair, whichever nodes take it; a ``Placement`` says which have none. Some functions are constant
beyond certain bounds (hard-swish is 0 below -3): codes are spread within those bounds only.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import getitem
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
from bitsweep.graphs.ops import ELEMENTWISE, LAYER_KINDS, aten, is_layer
from bitsweep.quantization.calibration.observers import ActivationObserver, ChooseRange, activation_spec
from bitsweep.quantization.overwriting import overwriting

RECTIFIERS = {aten.relu.default, aten.relu6.default, aten.hardtanh.default}
#: Functions of one activation, with the bounds beyond which they are constant.
FUNCTIONS: dict[Any, tuple[float, float]] = {
    aten.hardswish.default: (-3.0, math.inf),
    aten.hardsigmoid.default: (-3.0, 3.0),
    aten.relu.default: (0.0, math.inf),
    aten.relu6.default: (0.0, 6.0),
    aten.hardtanh.default: (-math.inf, math.inf),
    aten.silu.default: (-math.inf, math.inf),
    aten.sigmoid.default: (-math.inf, math.inf),
    aten.gelu.default: (-math.inf, math.inf),
    aten.leaky_relu.default: (-math.inf, math.inf),
    aten.adaptive_avg_pool2d.default: (-math.inf, math.inf),
    aten.avg_pool2d.default: (-math.inf, math.inf),
    aten.mean.dim: (-math.inf, math.inf),
}
#: Operations whose output values are input values.
MOVES = {
    aten.max_pool2d.default,
    aten.flatten.using_ints,
    aten.view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.squeeze.dim,
    aten.unsqueeze.default,
    aten.contiguous.default,
    aten.slice.Tensor,
}
PAIRS = {aten.add.Tensor, aten.mul.Tensor}
#: Operations that yield parts of what they read, which are not on codes.
_PARTS = {aten.unbind.int, aten.select.int, aten.split.Tensor, aten.chunk.default, aten.unflatten.int, getitem}
#: Functions that engines compute in float.
SMOOTH = frozenset(ELEMENTWISE - RECTIFIERS)


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
        if node.name in self.floats or (self.fuses_functions and _computed_on_sums(node)):
            return True
        is_linear = is_layer(node) and LAYER_KINDS[node.target] == "linear"
        return is_linear and self.yields_floats and _ends_in_floats(node, SMOOTH)


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
                self._annotate(node, inputs=node.args[:1], quantizes_output=not _makes_logits(node))
            elif _leads_to_logits(node):
                continue
            elif _on_codes(node):
                self._annotate(node, inputs=node.args[:2])
            elif node.target in RECTIFIERS and _fuses(node):
                self._annotate(node, inputs=())
            elif _passes_floats(node):
                continue
            elif _moves(node) and _is_activation(node.args[0]):
                self._share(node, node.args[:1])
            elif node.target in FUNCTIONS and _is_activation(node.args[0]):
                self._annotate(node, inputs=node.args[:1])
            elif node.target == aten.cat.default and all(map(_is_activation, node.args[0])):
                self._share(node, node.args[0])
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing is left to check."""

    def _annotate(self, node: Node, *, inputs: Any, quantizes_output: bool = True) -> None:
        fused = len(node.users) == 1 and _fuses(next(iter(node.users)))
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


def _computed_on_sums(node: Node) -> bool:
    """Whether a node is a layer that a smooth function alone reads."""
    if node.target not in LAYER_KINDS or len(node.users) != 1:
        return False
    (user,) = node.users
    return user.target in SMOOTH


def _on_codes(node: Node) -> bool:
    """Whether a node is a sum or a product of two activations that is computed on codes."""
    return (
        node.target in PAIRS
        and all(map(_is_activation, node.args[:2]))
        and not (node.target == aten.add.Tensor and _in_residual_stream(node))
    )


def _in_residual_stream(node: Node) -> bool:
    """Whether a layer normalisation, or a sum that one reads, reads a tensor as it is, moved, in parts or joined."""
    return any(
        user.target == aten.layer_norm.default
        or (user.target == aten.add.Tensor and all(map(_is_activation, user.args[:2])) and _in_residual_stream(user))
        or (_passes_on(user) and _in_residual_stream(user))
        for user in node.users
    )


def _passes_floats(node: Node) -> bool:
    """Whether a node moves or joins values, and yields floats.

    What is joined in a residual stream does: the token of the class and those of the image may be far apart in range.
    """
    if node.target == aten.cat.default and _in_residual_stream(node):
        return True
    return (_moves(node) or node.target == aten.cat.default) and _ends_in_floats(node) and not _shares_codes(node)


def _shares_codes(node: Node) -> bool:
    """Whether a node reads codes, and OpenVINO would compute otherwise if it read floats.

    So it does where others read the codes, too; and where they are padded, it pads with the code 0, which is not zero.
    """
    alone = [] if node.target == aten.pad.default else [each for each in node.all_input_nodes if len(each.users) == 1]
    known = (each.meta.get("quantization_annotation") for each in node.all_input_nodes if each not in alone)
    return any(annotation is not None and annotation.output_qspec is not None for annotation in known)


def _ends_in_floats(node: Node, also: frozenset[Any] = frozenset()) -> bool:
    """Whether all that reads what a node yields, as it is, moved or in parts, computes in float.

    Args:
        also: what counts as computing in float, too.
    """
    return all(
        _ends_in_floats(user) if _passes_on(user) else user.target in also or not _computes_on_codes(user)
        for user in node.users
    )


def _computes_on_codes(node: Node) -> bool:
    """Whether integer engines have kernels for an operation; all others compute in float."""
    return is_layer(node) or node.target in FUNCTIONS or _on_codes(node)


def _passes_on(node: Node) -> bool:
    """Whether a node yields what it reads, moved, in parts or joined."""
    return _moves(node) or node.target in _PARTS or node.target == aten.cat.default


def _fuses(node: Node) -> bool:
    """Whether a node is a rectifier that runs in one kernel with the operation before it."""
    if node.target not in RECTIFIERS or (node.target == aten.hardtanh.default and node.args[1:2] != (0,)):
        return False
    source = node.args[0]
    assert isinstance(source, Node)
    return len(source.users) == 1 and (source.target in LAYER_KINDS or source.target == aten.add.Tensor)


def _moves(node: Node) -> bool:
    """Whether all output values of a node are input values or zeros."""
    if node.target == aten.adaptive_avg_pool2d.default:
        read, yielded = (value.meta["val"].shape[2:] for value in (node.all_input_nodes[0], node))
        return not any(count % size for size, count in zip(read, yielded, strict=True))
    if node.target == aten.pad.default:
        return node.args[3:] in ((), (None,), (0,))
    return node.target in MOVES


def _makes_logits(node: Node) -> bool:
    return LAYER_KINDS[node.target] == "linear" and all(map(_leads_to_logits, node.users))


def _leads_to_logits(node: Node) -> bool:
    """Whether a node is the end of the network, or only moves values to there."""
    if node.op == "output":
        return True
    return (_moves(node) or node.target == aten.cat.default) and all(map(_leads_to_logits, node.users))


def _is_activation(argument: Any) -> bool:
    """Whether an argument is a float tensor that depends on the images."""
    if not isinstance(argument, Node) or argument.op == "get_attr":
        return False
    value = argument.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


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
        for images in batches:
            observed(images)
    return convert(observed)
