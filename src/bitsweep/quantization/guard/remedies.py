"""What the guard did about noise, in words."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule, Node

from bitsweep.config.precision import Grid
from bitsweep.graphs.ops import arguments, is_layer
from bitsweep.quantization.analysis.noise import Source
from bitsweep.results import Table

#: Price of a remedy.
FREE = "costs no latency"
#: Names of the tables.
NOISE, GUARD, CHANNELS = "noise", "guard", "channels"
#: How many sources of noise a table tells, and of how many it tells the channels.
_TOLD, _OPENED = 20, 3


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """What was done about a source of noise.

    Attributes:
        source: what made the noise, in words.
        cause: why it made so much.
        action: what was done.
        price: what that costs.
        layers: names of the layers that it changed.
        alone_db: SQNR of the logits with the source rounded alone, before.
        after_db: SQNR of the logits with everything rounded, after.
    """

    source: str
    cause: str
    action: str
    price: str
    layers: tuple[str, ...]
    alone_db: float
    after_db: float

    def __str__(self) -> str:
        return f"{self.action}: {self.source} alone left {self.alone_db:.1f} dB ({self.cause}); {self.price}"


def layer_name(path: str) -> str:
    """Module path of a layer from the path of its weights."""
    return path.removesuffix(".weight")


def name_of(layer: Node) -> str:
    """Module path of a layer."""
    return layer_name(str(arguments(layer)[1].target))


def described(graph: GraphModule, source: Source) -> str:
    """A source in the words of the network's author."""
    if source.what == "weights":
        return f"the weights of {layer_name(source.name)}"
    (node,) = (node for node in graph.graph.nodes if node.name == source.name)
    if node.op == "placeholder":
        return "the images"
    if is_layer(node):
        return f"the output of {name_of(node)}"
    layer, operation = node, str(getattr(node.target, "__name__", node.target)).partition(".")[0]
    while not is_layer(layer) and layer.all_input_nodes:
        layer = layer.all_input_nodes[0]
    after = f" after {name_of(layer)}" if is_layer(layer) else ""
    return f"{operation.rstrip('_')}{after}"


def cause_of(source: Source) -> str:
    """Why a source makes more noise than others, from its channels."""
    values_C = _of_channels(source)
    most = int(values_C.argmax())
    if source.what == "activation":
        return f"channel {most} spans {values_C[most]:.3g}, the median channel {values_C.median():.3g}"
    return f"rounding shifts the mean of channel {most} by {values_C[most]:.2g} of its standard deviation"


def _of_channels(source: Source) -> Tensor:
    """How far each channel of an activation spans; of weights, by how many standard deviations they shift its mean."""
    if source.low_C is not None and source.high_C is not None:
        return source.high_C.clamp(min=0) - source.low_C.clamp(max=0)
    assert source.shift_C is not None and source.spread_C is not None
    return source.shift_C.abs() / source.spread_C.clamp(min=1e-12)


def knob_of(source: Source, weights: Grid) -> str:
    """What mends a source that still costs accuracy."""
    if source.what == "activation":
        return "method=qat; precision=w8a16 shows what activations cost"
    return "method=adaround or qat" if weights.bits > 4 else "method=adaround or mixed, or more precision.weights.bits"


def noise_table(graph: GraphModule, sources: Iterable[Source], weights: Grid, *, knob: str = "") -> Table:
    """What is rounded, from the most to the least noise, as far as it makes some.

    Args:
        knob: what mends all of it; otherwise that is told for each.
    """
    noisy = [source for source in sources if math.isfinite(source.sqnr_db)][:_TOLD]
    rows = tuple(
        (described(graph, each), each.sqnr_db, cause_of(each), knob or knob_of(each, weights)) for each in noisy
    )
    return Table(name=NOISE, columns=("what is rounded", "alone: SQNR dB", "channels", "try"), rows=rows)


def channel_table(*looks: tuple[str, GraphModule, Iterable[Source]]) -> Table:
    """The channels of what makes most noise.

    Args:
        looks: each with when it was, a network, and what is rounded in it, from the most to the least noise.
    """
    rows: list[tuple[str | float, ...]] = []
    for when, graph, sources in looks:
        noisy = (source for source in sources if math.isfinite(source.sqnr_db))
        for source in itertools.islice(noisy, _OPENED):
            told = f"{when}: alone {source.sqnr_db:.1f} dB"
            shown = "span of values" if source.what == "activation" else "shift of the mean / std"
            values = enumerate(_of_channels(source).tolist())
            rows += [(described(graph, source), told, shown, channel, value) for channel, value in values]
    return Table(name=CHANNELS, columns=("what is rounded", "when", "shown", "channel", "value"), rows=tuple(rows))


def remedy_table(remedies: Iterable[Remedy], *, before_db: float) -> Table:
    """What was done, with the SQNR of the logits that the whole network has after each step."""
    rows: list[tuple[str | float, ...]] = [("before", "", "", "", "", before_db)]
    rows += [(each.source, each.action, each.cause, each.price, each.alone_db, each.after_db) for each in remedies]
    columns = ("against", "remedy", "cause", "price", "alone: SQNR dB", "network after: SQNR dB")
    return Table(name=GUARD, columns=columns, rows=tuple(rows))
