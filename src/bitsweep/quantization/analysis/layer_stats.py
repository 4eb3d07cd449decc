"""Statistics of a network, layer by layer, before and after compression.

Shape letters: N images, C channels, H height, W width.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from bitsweep.graphs.observe import observe
from bitsweep.graphs.ops import FLOAT_KINDS, LAYER_KINDS, arguments, layers
from bitsweep.quantization import grids
from bitsweep.results import Array, Distribution, LayerStats

#: At most so many values of a tensor are looked at, in so many bins; maps are kept of so many layers and channels.
_SAMPLE, _BINS, _MAPPED_LAYERS, _MAPPED_CHANNELS = 65_536, 80, 3, 6
#: Least height and width of a map in which something is to be seen.
_SMALLEST_MAP = 4


def layer_stats(before: ExportedProgram, after: ExportedProgram, images: torch.Tensor) -> tuple[LayerStats, ...]:
    """Statistics of the layers of a float network, and of their inputs in the network that was made from it.

    A layer of that network is known by the path of its weights. Where it became a chain, its first part is looked at.

    Args:
        before: the float network, batch normalisation folded.
        after: the compressed network; the same object if it was not compressed.
        images: float32 [N, 3, H, W]; the maps are of the first.
    """
    graph = _graph(before)
    inputs_before = _layer_inputs(graph, images)
    inputs_after = {} if after is before else _layer_inputs(_graph(after), images)
    mapped = _spread([name for name, read in inputs_after.items() if read.has_maps and name in inputs_before])
    stats = []
    for layer in layers(graph):
        if (read := inputs_before.get(layer.name)) is None:
            continue
        same = inputs_after.get(layer.name, read)
        comparable = same.values.shape == read.values.shape and bool(torch.isfinite(same.values).all())
        sqnr_db = grids.sqnr_db(read.values, same.values) if comparable else math.nan
        stats.append(
            LayerStats(
                name=layer.name,
                weights=_distribution(_sample(layer.weight), layer.weight.min().item(), layer.weight.max().item()),
                inputs=_distribution(read.values, read.low, read.high),
                input_sqnr_db=sqnr_db if math.isfinite(sqnr_db) else None,
                maps_2CHW=_maps(read.first, same.first) if layer.name in mapped else None,
            )
        )
    return tuple(stats)


@dataclass(frozen=True, kw_only=True)
class _LayerInput:
    """Inputs of a layer: a sample of the values, always at the same places, their ends, and those of one image."""

    values: torch.Tensor
    low: float
    high: float
    first: torch.Tensor

    @property
    def has_maps(self) -> bool:
        """Whether there are channels in which something is to be seen."""
        return self.first.ndim == 3 and min(self.first.shape[1:]) >= _SMALLEST_MAP


def _graph(program: ExportedProgram) -> GraphModule:
    graph = program.module(check_guards=False)
    assert isinstance(graph, GraphModule)
    return graph


def _layer_inputs(graph: GraphModule, images: torch.Tensor) -> dict[str, _LayerInput]:
    """What each layer reads when it is run first, by its path."""
    read: dict[str, _LayerInput] = {}

    def see(node: Node, inputs: tuple[Any, ...], _: Any) -> None:
        if (node.target in LAYER_KINDS or node.target in FLOAT_KINDS) and (name := _layer_name(node)) not in read:
            x = inputs[0].float()
            read[name] = _LayerInput(values=_sample(x), low=x.min().item(), high=x.max().item(), first=x[0].clone())

    observe(graph, [images], see)
    return read


def _layer_name(node: Node) -> str:
    """Module path of a layer in the original network, from the path of the parameter that its weights come from."""
    weight = arguments(node)[1]
    while isinstance(weight, Node) and weight.op == "call_function" and weight.args:
        weight = arguments(weight)[0]
    return re.sub(r"\.?weight(_codes|_factor.*)?$", "", str(getattr(weight, "target", "")))


def _sample(x: torch.Tensor) -> torch.Tensor:
    values = x.flatten()
    if len(values) <= _SAMPLE:
        return values.clone()
    return values[torch.randint(len(values), (_SAMPLE,), generator=torch.Generator().manual_seed(0))]


def _distribution(values: torch.Tensor, low: float, high: float) -> Distribution:
    """How values are spread of which these are a sample."""
    counts = torch.histc(values, bins=_BINS, min=low, max=high)
    return Distribution(
        low=low,
        high=high,
        mean=values.mean().item(),
        std=values.std(correction=0).item(),
        counts=tuple(int(count) for count in counts),
    )


def _spread(names: list[str]) -> list[str]:
    """A few layers from near the first, whose input is the image itself, to the last."""
    inner = names[1:]
    few = min(_MAPPED_LAYERS, len(inner))
    return [inner[round(place * (len(inner) - 1) / max(1, few - 1))] for place in range(few)]


def _maps(before_CHW: torch.Tensor, after_CHW: torch.Tensor) -> Array:
    """The channels of both that vary most before, float32 [2, C, H, W]."""
    varied = before_CHW.flatten(1).std(1, correction=0)
    chosen = varied.argsort(descending=True, stable=True)[:_MAPPED_CHANNELS].sort().values
    maps_2CHW: Array = torch.stack([before_CHW[chosen], after_CHW[chosen]]).numpy()
    return maps_2CHW
