"""Channels that get means of 0, where what reads them makes up for that, and what is told of it."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from bitsweep.graphs.ops import arguments, is_layer
from bitsweep.quantization.analysis.noise import Source
from bitsweep.quantization.guard.remedies import FREE, Remedy, described, name_of
from bitsweep.quantization.guard.state import State
from bitsweep.quantization.rewrites.centring import means_of, movable_means, move_means

#: How many times its widest channel a tensor spans at least, or its own span a channel lies from 0, for means to move.
WORTH = 2.0


def centred(state: State, images: Tensor) -> tuple[State, Remedy] | None:
    """A trial with means of 0 wherever they can be moved; None where that mends nothing harmful.

    Args:
        images: a few, float32 [N, C, H, W].
    """
    harmful = [source for source in state.harmful() if _lies_apart(source)]
    if not harmful:
        return None
    trial = state.copied()
    means = means_of(trial.graph, movable_means(trial.graph), images)
    nodes = move_means(trial.graph, means)
    moved = {node.name for node in nodes}
    harmful = [source for source in harmful if not moved.isdisjoint({source.name, *source.sharing})]
    if not harmful:
        return None
    layers = [node for node in trial.graph.graph.nodes if node in nodes and is_layer(node)]
    changed = trial.changed | moved | {str(arguments(layer)[1].target) for layer in layers}
    return replace(trial, changed=changed), _remedy(state, harmful[0], tuple(name_of(layer) for layer in layers))


def _remedy(state: State, source: Source, layers: tuple[str, ...]) -> Remedy:
    assert source.low_C is not None and source.high_C is not None
    span_C, middle_C = source.high_C - source.low_C, (source.low_C + source.high_C) / 2
    most = int((middle_C.abs() / span_C.clamp(min=1e-12)).argmax())
    return Remedy(
        source=described(state.graph, source),
        cause=f"channel {most} lies around {middle_C[most]:.3g}, and spans {span_C[most]:.3g}",
        action="means of channels were moved into the layers that read them", price=FREE, layers=layers,
        alone_db=source.sqnr_db, after_db=math.nan,
    )  # fmt: skip


def _lies_apart(source: Source) -> bool:
    """Whether means take much of the range of an activation, or would if each channel had a scale of its own."""
    if source.low_C is None:
        return False
    low_C, high_C = _ends(source)
    span_C, middle_C = high_C - low_C, (low_C + high_C) / 2
    apart_C = (span_C > 0) & (middle_C.abs() > WORTH * span_C)
    return bool(high_C.max() - low_C.min() > WORTH * span_C.max()) or bool(apart_C.any())


def _ends(source: Source) -> tuple[Tensor, Tensor]:
    """Ends of the channels of an activation, and of the others that share its scale."""
    assert source.low_C is not None and source.high_C is not None
    low, high = zip((source.low_C, source.high_C), *source.sharing.values(), strict=True)
    return torch.cat(low), torch.cat(high)
