"""Channels that get scales of their own: which tensors, by which factors, and what is told of it."""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from bitsweep.graphs.ops import arguments, aten, is_layer
from bitsweep.quantization.analysis.noise import Source
from bitsweep.quantization.guard.remedies import FREE, Remedy, cause_of, described, name_of
from bitsweep.quantization.guard.state import State
from bitsweep.quantization.rewrites.channel_groups import ScalingGroup, group_of, layer_groups
from bitsweep.quantization.rewrites.channel_relations import GATED
from bitsweep.quantization.rewrites.channel_scaling import even_factors, expected_reach, reader_weights, scale_channels
from bitsweep.quantization.rewrites.token_groups import token_groups


def merging_remedy(state: State, layer: Node, pairs: list[tuple[int, int]]) -> Remedy:
    """What is told of a layer that does not read the second of each pair of channels any more."""
    source = state.sources.get(str(arguments(layer)[1].target))
    first, second = pairs[0]
    always = f"channel {second} is always " + ("0" if first == second else f"a multiple of channel {first}")
    more = f", and {len(pairs) - 1} more are like that" if len(pairs) > 1 else ""
    return Remedy(
        source=f"the weights of {name_of(layer)}",
        cause=always + more, action="what such channels tell is read from one of them", price=FREE,
        layers=(name_of(layer),),
        alone_db=math.inf if source is None else source.sqnr_db, after_db=math.nan,
    )  # fmt: skip


def free_groups(graph: GraphModule, images: Tensor, *, fuses_functions: bool) -> Iterator[ScalingGroup]:
    """Tensors that can be scaled without an operation more.

    Args:
        images: a few, float32 [N, C, H, W].
        fuses_functions: whether the engine computes smooth functions on the sums of the layer before.
    """
    yield from token_groups(graph, images)
    yield from (group for group in layer_groups(graph) if not group.gated)
    for node in graph.graph.nodes if fuses_functions else ():
        if node.target in GATED and is_layer(node.args[0]) and len(node.args[0].users) == 1:
            group = group_of(graph, node)
            if group is not None and not group.gated:
                yield group


def scaled(trial: State, state: State, group: ScalingGroup) -> State:
    """The trial, whose graph is changed in place, with a group of the state scaled."""
    same = group.within(trial.graph)
    if group.reach_C is not None:
        reach_C = changes_C = group.reach_C
    else:
        ends = [_reach_and_changes(group, source) for source in state.watched(group)]
        reach_C, changes_C = (torch.stack(each).amax(0) for each in zip(*ends, strict=True))
    expected_C = expected_reach(trial.graph, same, reach_C)
    if group.reach_C is not None:  # the other channels have no factor
        expected_C = torch.where(reach_C > 0, expected_C, 0)
    factor_C = even_factors(expected_C, reader_weights(trial.graph, same, changes_C))
    if group.reach_C is not None:
        factor_C = torch.where(reach_C > 0, factor_C, 1)
    placement = trial.placement
    if not group.starts_with_layer:
        placement = replace(placement, floats=placement.floats | {group.start.name})
    elif group.gated and (source := state.sources.get(group.start.name)) is not None:
        bounds = {**placement.bounds, group.start.name: (_lowest(group, source, factor_C), math.inf)}
        placement = replace(placement, bounds=bounds)
    scale_channels(trial.graph, same, factor_C)
    return replace(trial, placement=placement, changed=trial.changed | group.names)


def scaling_remedy(state: State, group: ScalingGroup, source: Source, *, price: str) -> Remedy:
    """What is told of a scaled group, whose worst source is given."""
    yielding = group.starts if group.starts_with_layer else group.start.all_input_nodes
    layers = [node for node in (*yielding, *group.readers) if is_layer(node)]
    return Remedy(
        source=described(state.graph, source), cause=cause_of(source), price=price,
        action="channels were given scales of their own", layers=tuple(name_of(layer) for layer in layers),
        alone_db=source.sqnr_db, after_db=math.nan,
    )  # fmt: skip


def _reach_and_changes(group: ScalingGroup, source: Source) -> tuple[Tensor, Tensor]:
    """Largest magnitude of each channel of a group in one of its tensors, and by how much it changes.

    Both are as far as the readers tell values apart.
    """
    assert source.low_C is not None and source.high_C is not None
    low_C = source.low_C
    if source.name == group.start.name and group.gated:
        low_C = low_C.clamp(min=_least(group))
    (number_C,) = (number_C for node, number_C in group.carriers.items() if node.name == source.name)
    found = []
    for own_C in (torch.maximum(-low_C, source.high_C).clamp(min=0), source.high_C - low_C):
        found.append(torch.zeros(group.channels).scatter_reduce(0, number_C, own_C, "amax"))
    return found[0], found[1]


def _lowest(group: ScalingGroup, source: Source, factor_C: Tensor) -> float:
    """Value below which no channel of a scaled tensor is told apart by the functions that read it."""
    assert source.low_C is not None
    return float((source.low_C.clamp(min=_least(group), max=0) / factor_C[group.carriers[group.start]]).min())


def _least(group: ScalingGroup) -> float:
    """Below which hard-swish is 0; SiLU never is."""
    return -3.0 if all(node.target == aten.hardswish.default for node in group.gated) else -math.inf
