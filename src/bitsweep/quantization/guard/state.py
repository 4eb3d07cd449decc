"""How far the guard has come: the network with the remedies so far, and what is known of its noise."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor
from torch.fx import GraphModule, Node

from bitsweep.graphs.ops import arguments, attribute, is_layer, values_of_an_image
from bitsweep.quantization.analysis.noise import NoiseStudy, Source
from bitsweep.quantization.guard.remedies import Remedy
from bitsweep.quantization.placement import Placement
from bitsweep.quantization.rewrites.channel_groups import ScalingGroup

#: What alone leaves more than this, in dB, is not worth any remedy.
HARMLESS_DB = 35.0
#: How many sources are measured alone; the others are estimated.
_MEASURED = 4


@dataclass(frozen=True, kw_only=True)
class State:
    """A network with the remedies so far.

    Attributes:
        placement, floats, remedies: see ``Guarded``.
        float_layers: names of the nodes of layers that compute in float by now.
        study: of the network as it is.
        sources: by name, from the most to the least noise.
        among: which of them are looked at, by path and by name of the node; None for all.
        total_db: SQNR of the logits with everything rounded.
        changed: names of the nodes, and paths of the weights, that have other values by now than in the study.
    """

    graph: GraphModule
    placement: Placement
    study: NoiseStudy
    total_db: float
    floats: frozenset[str] = frozenset()
    float_layers: frozenset[str] = frozenset()
    remedies: tuple[Remedy, ...] = ()
    sources: Mapping[str, Source] = field(default_factory=dict)
    among: frozenset[str] | None = frozenset()
    changed: frozenset[str] = frozenset()

    @property
    def noise(self) -> float:
        """Sum over the sources of the noise of each alone in units of the signal, at most 1 each."""
        return sum(min(1.0, 10 ** (-source.sqnr_db / 10)) for source in self.sources.values())

    def copied(self) -> "State":
        """The same with a graph of its own, which reads the same tensors: they are replaced, never changed in place."""
        return replace(self, graph=GraphModule(self.graph, copy.deepcopy(self.graph.graph)))

    def studied(self, study: NoiseStudy) -> "State":
        """The same with a study of the network as it is; its sources are those of the study before."""
        return replace(self, study=study, total_db=study.total_db(), changed=frozenset())

    def looking_at(self, more: frozenset[str] | None) -> "State":
        """The same with other sources besides its own; None for all there are."""
        if self.among is None or (more is not None and more <= self.among):
            return self
        return replace(self, among=None if more is None else self.among | more).priced()

    def priced(self) -> "State":
        """The same with its sources as they are now: the worst measured, the others estimated."""
        found = self.study.sources(self.sources.values(), among=self.among)
        worst = [self.study.measured(each) if each.sqnr_db < HARMLESS_DB else each for each in found[:_MEASURED]]
        ordered = sorted((*worst, *found[_MEASURED:]), key=lambda source: source.sqnr_db)
        return replace(self, sources={source.name: source for source in ordered})

    def ranges(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Ends of the channels of rounded tensors, by the names of their nodes, as far as they are known."""
        ends = {source.name: (source.low_C, source.high_C) for source in self.sources.values()}
        known = {name: (low, high) for name, (low, high) in ends.items() if low is not None and high is not None}
        return known | {name: each for source in self.sources.values() for name, each in source.sharing.items()}

    def harmful(self, limit_db: float = HARMLESS_DB) -> list[Source]:
        """The sources that alone leave less than a limit, the worst first."""
        return [source for source in self.sources.values() if source.sqnr_db < limit_db]

    def watched(self, group: ScalingGroup) -> list[Source]:
        """The rounded tensors of a group, also those that share the scale of another one."""
        channels = {node.name: len(number_C) for node, number_C in group.carriers.items()}
        found = [source for name, source in self.sources.items() if name in channels and source.low_C is not None]
        for source in self.sources.values():
            ends = (each for each in source.sharing.items() if each[0] in channels)
            found += [replace(source, name=name, low_C=low_C, high_C=high_C) for name, (low_C, high_C) in ends]
        if group.reach_C is not None:
            return found
        return [each for each in found if each.low_C is not None and len(each.low_C) == channels[each.name]]

    def harm_of(self, group: ScalingGroup) -> list[Source]:
        """What scaling a group may help against: its rounded tensors, and the weights of the layers that read it."""
        if not (watched := self.watched(group)):  # how far the channels reach was not looked at
            return []
        readers = (self.sources.get(str(arguments(node)[1].target)) for node in group.readers)
        named = (*watched, *(source for source in readers if source is not None))
        return sorted((source for source in named if source.sqnr_db < HARMLESS_DB), key=lambda source: source.sqnr_db)

    def macs(self, node: Node) -> int:
        """Multiply-accumulates of a layer for one image."""
        weight = attribute(self.graph, arguments(node)[1])
        return values_of_an_image(node.meta["val"]) * weight[0].numel()

    def total_macs(self) -> int:
        """Of all layers that can be put on a grid."""
        return sum(self.macs(node) for node in self.graph.graph.nodes if is_layer(node))

    def computed_in_float(self, source: Source) -> list[Node]:
        """The layers that compute in float if a source stays float: its own, or those that read or yield it."""
        found = []
        for node in self.graph.graph.nodes:
            if not is_layer(node):
                continue
            read, weight = arguments(node)[:2]
            if source.name == weight.target or _through_moves(read, source.name) or self._yields(node, source.name):
                found.append(node)
        return found

    def _yields(self, layer: Node, name: str) -> bool:
        """Whether a layer yields a tensor, itself or by a function that alone reads it."""
        if layer.name == name:
            return True
        (user, *others) = layer.users
        return not others and user.name == name and len(user.all_input_nodes) == 1


def _through_moves(read: Node, name: str) -> bool:
    return read.name == name
