"""A guard against the few tensors and layers that alone would ruin a rounded network.

Real networks have tensors whose channels differ a thousandfold in range, and layers whose rounded weights shift the
means of what they yield. Biases make up for shifted means, which costs nothing, so that they always do. Then the guard
rounds the network on a few calibration images, and where its logits are too far from those of the float network, gives
to what costs most the cheapest remedy that helps: scales of channels moved into the neighbours, and float at last.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor
from torch.fx import GraphModule, Node

from bitsweep.config.precision import Grid
from bitsweep.graphs.ops import arguments, attribute, is_layer, values_of_an_image
from bitsweep.quantization.analysis.noise import NoiseStudy
from bitsweep.quantization.analysis.watching import study_noise
from bitsweep.quantization.calibration.observers import ChooseRange
from bitsweep.quantization.guard.centring import centred
from bitsweep.quantization.guard.guarded import Guarded
from bitsweep.quantization.guard.remedies import (
    FREE,
    Remedy,
    cause_of,
    channel_table,
    described,
    name_of,
    noise_table,
    remedy_table,
)
from bitsweep.quantization.guard.scaling import free_groups, merging_remedy, scaled, scaling_remedy
from bitsweep.quantization.guard.state import State
from bitsweep.quantization.placement import EVERYWHERE, Placement
from bitsweep.quantization.rewrites.channel_groups import layer_groups
from bitsweep.quantization.rewrites.equal_channels import read_once
from bitsweep.results import Table

#: SQNR of the logits in dB with which a network needs no remedies that cost latency.
SUFFICIENT_DB = 18.0
#: The same of those that cost none.
ENOUGH_DB = SUFFICIENT_DB + 4
#: With less than this, in dB, the logits tell nothing, and so not which of two networks is better.
RUINED_DB = 3.0
#: What alone leaves more than this, in dB, is not worth a remedy that costs latency.
COSTLY_DB = SUFFICIENT_DB + 10
#: What alone leaves less than this above the whole network, in dB, makes a quarter of all noise: worth a small
#: convolution even after the network has enough.
LARGE_PART_DB = 6.0
#: How many tensors are tried at a price, at most.
TRIALS = 6
#: Largest share of the multiply-accumulates that is left in float.
FLOAT_SHARE = 0.05
#: Least bits of weights whose noise is mended.
FINE_BITS = 7
#: Calibration images that are looked at.
IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class Guard:
    """How a network is to be rounded.

    Attributes:
        round_weights: from the weights of a layer to what they become; None where layers get other weights.
        weights, activations: the grids; the activations' is None in float.
        choose_range: of activations.
        placement: of the pairs without remedies.
    """

    round_weights: Callable[[Tensor], Tensor] | None
    weights: Grid
    activations: Grid | None
    choose_range: ChooseRange
    placement: Placement = EVERYWHERE

    def protect(self, graph: GraphModule, images: Tensor) -> Guarded:
        """The network with the remedies that it needs; the same graph where it needs none.

        Args:
            graph: a traced network without batch normalisation.
            images: a few calibration images, float32 [N, C, H, W].
        """
        study = self._study(graph, images, self.placement)
        start = State(graph=graph, placement=self.placement, study=study, total_db=study.total_db())
        state = self._read_once(start, images) if start.total_db < COSTLY_DB else start
        if state.total_db < SUFFICIENT_DB:
            before = state.looking_at(None)
            state = self._scale_for_free(self._centre(before, images), images)
            state = self._leave_in_float(self._scale_at_a_price(state, images), images)
            noise = self._noise_of_coarse_weights(state) or self._noise(state, before=before)
        else:
            state = self._scale_for_free(state, images) if state.total_db < ENOUGH_DB else state
            noise = self._noise_of_coarse_weights(state)
        told = state.remedies or state.among is None
        guard = (remedy_table(state.remedies, before_db=start.total_db),) if told else ()
        return self._guarded(state, tables=(*noise, *guard))

    def looked_at(self, graph: GraphModule, images: Tensor) -> Guarded:
        """The network as it is, with what costs most where it needs remedies; arguments as for ``protect``."""
        study = self._study(graph, images, self.placement)
        state = State(graph=graph, placement=self.placement, study=study, total_db=study.total_db())
        if state.total_db < SUFFICIENT_DB:
            tables = self._noise(state.looking_at(None), knob="method.guard=true")
        else:
            tables = self._noise_of_coarse_weights(state)
        return Guarded(graph=graph, placement=self.placement, tables=tables)

    def _guarded(self, state: State, *, tables: tuple[Table, ...]) -> Guarded:
        if state.remedies:
            state.graph.recompile()
        return Guarded(
            graph=state.graph,
            placement=state.placement,
            corrected=frozenset(_layers(state.graph)) - state.floats if self._judges_weights else frozenset(),
            floats=state.floats,
            remedies=state.remedies,
            tables=tables,
        )

    @property
    def _judges_weights(self) -> bool:
        """Whether the noise of weights counts: it does not where they are meant to be coarse."""
        return self.round_weights is not None and self.weights.bits >= FINE_BITS

    def _noise(self, state: State, *, before: State | None = None, knob: str = "") -> tuple[Table, ...]:
        """What costs most, and its channels; those of what cost most before, too, where something was done.

        Args:
            knob: what mends it, if that is one for all.
        """
        looks = [("before its remedies", before)] if before is not None and state.remedies else []
        looks += [("as it is quantized", state)]
        return (
            noise_table(state.graph, state.sources.values(), self.weights, knob=knob),
            channel_table(*((when, each.graph, each.sources.values()) for when, each in looks)),
        )

    def _noise_of_coarse_weights(self, state: State) -> tuple[Table, ...]:
        """What costs most where weights are so coarse that nothing is done about them; empty where little is lost."""
        if self._judges_weights or self.round_weights is None:
            return ()
        study = self._study(
            state.graph, state.study.images, state.placement, state.floats, known=state.study, coarse=True
        )
        coarse = replace(state.studied(study), among=None).priced()
        return self._noise(coarse) if coarse.total_db < SUFFICIENT_DB else ()

    # ------------------------------------------------------------------ remedies, from the cheapest

    def _read_once(self, state: State, images: Tensor) -> State:
        """Let layers read once what channels tell that are multiples of one another, so that weights do not cancel."""
        if state.total_db < SUFFICIENT_DB:
            state = state.looking_at(None)
            if not any(source.what == "weights" for source in state.harmful()):
                return state
        trial = state.copied()
        merged = read_once(trial.graph, state.ranges())
        if not merged:
            return state
        changed = frozenset(str(arguments(layer)[1].target) for layer in merged)
        state = state.looking_at(changed)
        if changed.isdisjoint(source.name for source in state.harmful()):
            return state
        told = [merging_remedy(state, layer, pairs) for layer, pairs in merged.items()]
        trial = replace(trial, sources=state.sources, among=state.among, changed=changed)
        return self._if_better(state, trial, told, images)

    def _centre(self, state: State, images: Tensor) -> State:
        """Move means of channels into the layers that read them, where they lie apart."""
        if (found := centred(state, images)) is None:
            return state
        trial, told = found
        return self._if_better(state, trial, [told], images)

    def _scale_for_free(self, state: State, images: Tensor) -> State:
        """Even out the channels of all tensors where that costs no latency; those that sums join only if need be.

        Then those of the others that did not help alone are tried with them.
        """
        for joined in (False, True):
            if joined and state.total_db >= SUFFICIENT_DB:
                break
            free = free_groups(state.graph, images, fuses_functions=self.placement.fuses_functions)
            if not (groups := [group for group in free if joined or len(group.starts) == 1]):
                continue
            state = state.looking_at(frozenset[str]().union(*(group.names for group in groups)))
            trial, told = state.copied(), list[Remedy]()
            for group in groups:
                if harm := state.harm_of(group):
                    trial = scaled(trial, state, group)
                    told.append(scaling_remedy(state, group, harm[0], price=FREE))
            if told:
                state = self._if_better(state, trial, told, images)
        return state

    def _scale_at_a_price(self, state: State, images: Tensor) -> State:
        """Even out the channels around hard-swish and SiLU, whose gates become convolutions, one tensor at a time."""
        tried, able = set[str](), self.weights.per_channel and not self.placement.fuses_functions
        while len(tried) < TRIALS and able:
            limit_db = min(COSTLY_DB, math.inf if state.total_db < SUFFICIENT_DB else state.total_db + LARGE_PART_DB)
            candidates = [
                (harm[0], group)
                for group in layer_groups(state.graph)
                if group.gated
                and group.start.name not in tried
                and (harm := state.harm_of(group))
                and harm[0].sqnr_db < limit_db
            ]
            if not candidates:
                break
            source, group = min(candidates, key=lambda each: each[0].sqnr_db)
            tried.add(group.start.name)
            places = values_of_an_image(group.start.meta["val"])
            share = 100 * len(group.gated) * places / state.total_macs()
            price = f"a depthwise convolution more, {share:.1f} % of the products"
            told = [scaling_remedy(state, group, source, price=price)]
            state = self._if_better(state, scaled(state.copied(), state, group), told, images)
        return state

    def _leave_in_float(self, state: State, images: Tensor) -> State:
        """Leave in float what alone is too much, one source at a time, as far as few products are touched.

        Two sources may hide one another, so one alone need not help; all together must.
        """
        before, total, tried = state, state.total_macs(), set[str]()
        while state.total_db < SUFFICIENT_DB:
            candidates = [source for source in state.harmful(SUFFICIENT_DB) if source.name not in tried]
            if not candidates:
                break
            source = candidates[0]
            tried.add(source.name)
            layers = state.computed_in_float(source)
            touched = state.float_layers | {layer.name for layer in layers}
            share = sum(state.macs(node) for node in state.graph.graph.nodes if node.name in touched) / total
            if share > FLOAT_SHARE:
                continue
            if source.what == "weights":
                trial = replace(state, float_layers=touched, floats=state.floats | {source.name})
            else:
                placement = replace(state.placement, floats=state.placement.floats | {source.name})
                trial = replace(state, float_layers=touched, placement=placement)
            told = Remedy(
                source=described(state.graph, source), cause=cause_of(source), action="it stays float",
                price=f"{100 * share:.1f} % of the products are computed in float by now",
                layers=tuple(name_of(layer) for layer in layers), alone_db=source.sqnr_db, after_db=math.nan,
            )  # fmt: skip
            state = self._if_better(state, trial, [told], images)
        return state if state.total_db > before.total_db else before

    # ------------------------------------------------------------------ trials

    def _if_better(self, state: State, trial: State, told: list[Remedy], images: Tensor) -> State:
        """The trial where there is less noise in it, else the state."""
        trial = trial.studied(
            self._study(
                trial.graph, images, trial.placement, trial.floats, known=state.study, changed=trial.changed
            )
        )  # fmt: skip
        if trial.total_db <= state.total_db - 0.5 and state.total_db > RUINED_DB:
            return state
        if (trial := trial.priced()).noise >= state.noise:
            return state
        after = (replace(remedy, after_db=trial.total_db) for remedy in told)
        return replace(trial, remedies=(*state.remedies, *after))

    def _study(
        self,
        graph: GraphModule,
        images: Tensor,
        placement: Placement,
        floats: frozenset[str] = frozenset(),
        *,
        known: NoiseStudy | None = None,
        changed: frozenset[str] = frozenset(),
        coarse: bool = False,
    ) -> NoiseStudy:
        rounded = dict[str, Tensor]()
        if self.round_weights is not None and (self._judges_weights or coarse):
            judged = {path: weight for path, weight in _layers(graph).items() if path not in floats}
            same = {} if known is None else {path: known.weights[path] for path in known.weights.keys() - changed}
            rounded = {
                path: same[path] if path in same else self.round_weights(attribute(graph, weight))
                for path, weight in judged.items()
            }
        return study_noise(
            graph, images, weights=rounded, corrected=not coarse, grid=self.activations,
            choose_range=self.choose_range, placement=placement, known=known, changed=changed,
        )  # fmt: skip


def _layers(graph: GraphModule) -> dict[str, Node]:
    """The weights of the layers, by path."""
    return {str(arguments(node)[1].target): arguments(node)[1] for node in graph.graph.nodes if is_layer(node)}
