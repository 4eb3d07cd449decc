"""The ranges that the activations of a network get, and the offsets of its biases, as a few images tell them.

A remedy changes few tensors. What is known of all others is taken over: their ranges are neither watched nor chosen
again.
"""

import copy
from collections import defaultdict
from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from bitsweep.config.precision import Grid
from bitsweep.graphs.ops import arguments, is_layer
from bitsweep.quantization.analysis.channels import mean_of_channels
from bitsweep.quantization.analysis.noise import NoiseStudy, QParams, error_of_weights
from bitsweep.quantization.calibration.observers import ActivationObserver, ChooseRange
from bitsweep.quantization.placement import Placement, observe


def study_noise(
    graph: GraphModule,
    images: Tensor,
    *,
    weights: Mapping[str, Tensor],
    corrected: bool,
    grid: Grid | None,
    choose_range: ChooseRange,
    placement: Placement,
    known: NoiseStudy | None = None,
    changed: frozenset[str] = frozenset(),
) -> NoiseStudy:
    """Watch the activations of a float network on a few images, and choose their ranges.

    Args:
        graph: a traced network without batch normalisation.
        images: float32 [N, C, H, W].
        weights: rounded values by path.
        corrected: whether biases make up for the means that rounded weights shift.
        grid: of the activations; None where they stay float.
        known: a study of the same function on the same images, with other factors of channels or other pairs.
        changed: names of the nodes, and paths of the weights, that have other values than in the known study.
    """
    observed = GraphModule(graph, copy.deepcopy(graph.graph))
    if grid is not None:
        observed = observe(observed, grid, choose_range, placement)
    observers, watched = dict[str, ActivationObserver](), defaultdict[ActivationObserver, list[str]](list)
    for node in observed.graph.nodes:
        observer = observed.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(observer, ActivationObserver):
            observers[node.target] = observer
            watched[observer].append(node.args[0].name)
    tensors = {target: watched[observer][0] for target, observer in observers.items()}
    sharing = {names[0]: frozenset(names) for names in watched.values()}
    fresh, qparams, offsets = {*weights, *sharing}, dict[str, QParams](), dict[str, Tensor]()
    if known is not None:
        fresh -= {first for first, names in sharing.items() if names == known.sharing.get(first)} | known.weights.keys()
        fresh |= {first for first, names in sharing.items() if not names.isdisjoint(changed)} | weights.keys() & changed
        found = {known.tensors[target]: each for target, each in known.qparams.items()}
        qparams = {target: found[name] for target, name in tensors.items() if name not in fresh}
        offsets = {path: each for path, each in known.offsets.items() if path in weights.keys() - fresh}
    watcher = _Watcher(observed, {path: weights[path] for path in fresh & weights.keys()} if corrected else {}, qparams)
    with torch.no_grad():
        logits = watcher.run(images)
    for target in observers.keys() - qparams.keys():
        qparams[target] = (*observers[target].calculate_qparams(), observers[target].grid)
    return NoiseStudy(
        observed=observed, qparams=qparams, tensors=tensors, sharing=sharing, weights=weights,
        offsets=offsets | watcher.offsets, images=images, logits=logits if known is None else known.logits,
        fresh=frozenset(fresh),
    )  # fmt: skip


class _Watcher(Interpreter):
    """Runs a float network for its observers, and sees by how much rounded weights shift the means of their layers.

    Args:
        weights: rounded values of the layers that are looked at, by path.
        known: targets of the observers that need not see anything.
    """

    def __init__(self, observed: GraphModule, weights: Mapping[str, Tensor], known: Container[str]) -> None:
        super().__init__(observed)
        self._weights, self._known = weights, known
        self.offsets: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        if n.op == "call_module" and n.target in self._known:
            return self.env[arguments(n)[0]]
        if is_layer(n) and (path := str(arguments(n)[1].target)) in self._weights:
            self.offsets[path] = mean_of_channels(error_of_weights(self, n, self._weights[path]), n)
        return super().run_node(n)
