"""What the rounding of each tensor, and of the weights of each layer, does to the logits.

To first order the K logits l change by J e for an error e. With P random orthonormal directions v

    |J e|^2 = K / P E sum_v (v^T J e)^2 = K / P E sum_v <g_v, e>^2,    g_v = d(v^T l) / dx,

so that a pass backwards for each direction prices every error in the network at once; with P = K there is no chance in
it. What a price says to be large is then measured: the network is run with that error alone. The signal is by what the
logits of images differ from their mean: what is the same for all images tells nothing. Which ranges and offsets the
rounding has is found in ``watching.py``.
"""

import math
from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from bitsweep.config.precision import Grid
from bitsweep.graphs.ops import arguments, is_layer, values_of_an_image
from bitsweep.graphs.qdq_pairs import round_to_grid
from bitsweep.quantization import grids
from bitsweep.quantization.analysis.channels import (
    along_channels,
    ends_of_channels,
    mean_of_channels,
    of_all_images,
    variance_of_channels,
)

#: Passes backwards.
_DIRECTIONS = 2
#: Values of activations that are priced at a time: they are kept for the way back, each with its error.
_KEPT = 1 << 25
QParams = tuple[Tensor, Tensor, Grid]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Something that is rounded.

    Attributes:
        name: path of the weights of a layer, or name of the node whose output is rounded.
        what: ``weights`` or ``activation``.
        sqnr_db: of the logits with this rounded alone; an estimate until it is ``measured``.
        low_C, high_C: ends of each channel of an activation.
        sharing: the same of the other activations that share its scale, by the names of their nodes.
        shift_C, spread_C: of each channel that a layer yields, how far rounded weights shift its mean, and its
            standard deviation.
    """

    name: str
    what: Literal["weights", "activation"]
    sqnr_db: float
    measured: bool = False
    low_C: Tensor | None = None
    high_C: Tensor | None = None
    sharing: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    shift_C: Tensor | None = None
    spread_C: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class NoiseStudy:
    """A float network beside its rounded form, on a few images.

    Attributes:
        observed: with an observer on every activation that is to be rounded.
        qparams: by the name of the observer.
        tensors: the node that each observer watches, the first one where several share their scale.
        sharing: by the name of that node, those of all nodes that share its scale.
        weights: rounded values by path.
        offsets: what is taken off the outputs of a layer with rounded weights, [C], by the path of the weights.
        images: float32 [N, C, H, W].
        logits: of the float network.
        fresh: names of the sources that are not as they were in a study before this one.
    """

    observed: GraphModule
    qparams: Mapping[str, QParams]
    tensors: Mapping[str, str]
    sharing: Mapping[str, frozenset[str]]
    weights: Mapping[str, Tensor]
    offsets: Mapping[str, Tensor]
    images: Tensor
    logits: Tensor
    fresh: frozenset[str]

    @property
    def middle(self) -> Tensor:
        """What the logits of all images have in common; nothing where they are all the same."""
        mean = self.logits.mean(0)
        return mean if (self.logits - mean).any() else torch.zeros_like(mean)

    def total_db(self) -> float:
        """SQNR of the logits with everything rounded."""
        return self._sqnr_db(self.qparams, self.weights)

    def measured(self, source: Source) -> Source:
        """A source with the SQNR of the logits with it rounded alone, if that was an estimate."""
        return source if source.measured else replace(source, sqnr_db=self.alone_db(source), measured=True)

    def alone_db(self, source: Source) -> float:
        """SQNR of the logits with one source rounded alone."""
        if source.what == "weights":
            return self._sqnr_db({}, {source.name: self.weights[source.name]})
        return self._sqnr_db(
            {name: self.qparams[name] for name, node in self.tensors.items() if node == source.name}, {}
        )

    def sources(self, known: Collection[Source] = (), *, among: frozenset[str] | None = None) -> list[Source]:
        """What is rounded, with an estimate of the noise that it makes, from the most to the least.

        Args:
            known: those of the study before this one, which need no other estimate unless they are fresh.
            among: paths of weights and names of nodes; None for everything.
        """
        rounded = {*self.weights, *self.sharing}
        if among is not None:
            rounded = {name for name in rounded if not among.isdisjoint({name, *self.sharing.get(name, ())})}
        kept = [source for source in known if source.name in rounded - self.fresh]
        others = rounded.difference(source.name for source in kept)
        found = self._estimated(others) if others else []
        return sorted((*kept, *found), key=lambda source: source.sqnr_db)

    @torch.enable_grad()  # type: ignore[untyped-decorator]
    def _estimated(self, names: Container[str]) -> list[Source]:
        """Some of what is rounded, with an estimate of the noise that it makes."""
        noises, channels = dict[str, float](), dict[str, list[dict[str, Tensor]]]()
        directions_DNK = _directions(*self.logits.shape)
        at_a_time = max(1, _KEPT // _values_computed(self.observed))
        for images, part_DNK in zip(
            torch.split(self.images, at_a_time), torch.split(directions_DNK, at_a_time, dim=1), strict=True
        ):
            priced = _Priced(self, names)
            logits = priced.run(images.clone().requires_grad_())
            values = [value for _, value, _ in priced.errors]
            for direction_NK in part_DNK:
                along = (logits * direction_NK).sum()
                gradients = torch.autograd.grad(along, values, allow_unused=True, retain_graph=True)
                changes_N: dict[str, Tensor] = {}
                for (name, _, error), gradient in zip(priced.errors, gradients, strict=True):
                    if gradient is not None:
                        change_N = (gradient * error).sum(tuple(range(1, error.ndim))).double()
                        changes_N[name] = changes_N.get(name, 0) + change_N
                for name, change_N in changes_N.items():
                    noises[name] = noises.get(name, 0.0) + change_N.square().sum().item() / len(self.images)
            for name, told in priced.channels.items():
                channels.setdefault(name, []).append(told | {"share": torch.tensor(len(images) / len(self.images))})
        found = []
        signal = (self.logits - self.middle).double().square().sum(1).mean().item()
        for name, noise in noises.items():
            sqnr_db = 10 * math.log10(signal / noise) if noise and signal else math.inf
            what: Literal["weights", "activation"] = "weights" if name in self.weights else "activation"
            others = (self.sharing.get(name, frozenset()) - {name}) & channels.keys()
            ends = {other: of_all_images(channels[other]) for other in sorted(others)}
            found.append(
                Source(
                    name=name, what=what, sqnr_db=sqnr_db, measured=False, **of_all_images(channels.get(name, [])),
                    sharing={other: (each["low_C"], each["high_C"]) for other, each in ends.items()},
                )
            )  # fmt: skip
        return found

    def _sqnr_db(self, qparams: Mapping[str, QParams], weights: Mapping[str, Tensor]) -> float:
        with torch.no_grad():
            rounded = _Rounded(self.observed, qparams, weights, self.offsets).run(self.images)
        return grids.sqnr_db(self.logits - self.middle, rounded - self.middle)


def _values_computed(graph: GraphModule) -> int:
    """How many values a network computes from an image."""
    tensors = (node.meta.get("val") for node in graph.graph.nodes if node.op == "call_function")
    return sum(values_of_an_image(tensor) for tensor in tensors if isinstance(tensor, Tensor))


def _directions(N: int, K: int) -> Tensor:
    """Orthonormal directions of the logits for each image, times the root of how many there are for each taken."""
    random = torch.randn(N, K, min(K, _DIRECTIONS), generator=torch.Generator().manual_seed(0))
    orthonormal: Tensor = torch.linalg.qr(random).Q
    return orthonormal.permute(2, 0, 1) * math.sqrt(K / orthonormal.shape[2])


def _rounded(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """Rounded to a grid of one scale."""
    return round_to_grid(x, scale.item(), int(zero_point), grid.lo, grid.hi)


class _Rounded(Interpreter):
    """Runs a network with some of its activations and weights rounded."""

    def __init__(
        self,
        observed: GraphModule,
        qparams: Mapping[str, QParams],
        weights: Mapping[str, Tensor],
        offsets: Mapping[str, Tensor],
    ) -> None:
        super().__init__(observed)
        self._qparams, self._weights, self._offsets = qparams, weights, offsets

    def run_node(self, n: Node) -> Any:
        if n.op == "call_module":
            x = self.env[arguments(n)[0]]
            return _rounded(x, *self._qparams[str(n.target)]) if n.target in self._qparams else x
        path = str(arguments(n)[1].target) if is_layer(n) else ""
        if path not in self._weights:
            return super().run_node(n)
        (x, _, *others), _ = self.fetch_args_kwargs_from_env(n)
        assert callable(n.target)
        result = n.target(x, self._weights[path], *others)
        return result - along_channels(self._offsets[path], n, result) if path in self._offsets else result


class _Priced(Interpreter):
    """Runs a float network forwards, and keeps with every tensor the error that rounding would add to it.

    Args:
        names: of the sources whose errors are looked at.

    Attributes:
        errors: the name of each source with the tensor and the error.
        channels: of each source, the ends, or the shift, mean and variance, of each channel.
    """

    def __init__(self, study: NoiseStudy, names: Container[str]) -> None:
        super().__init__(study.observed)
        self._study, self._names = study, names
        self.errors: list[tuple[str, Tensor, Tensor]] = []
        self.channels: dict[str, dict[str, Tensor]] = {}

    def run_node(self, n: Node) -> Any:
        result = self.env[arguments(n)[0]] if n.op == "call_module" else super().run_node(n)
        if n.op == "get_attr" and isinstance(result, Tensor):
            return result.detach()
        if n.op == "call_module" and not result.requires_grad:
            result = result.detach().requires_grad_()  # what does not depend on the images is rounded, too
        with torch.no_grad():
            if n.op == "call_module" and n.target in self._study.qparams:
                self._price_activation(n, result)
            elif is_layer(n) and (path := str(arguments(n)[1].target)) in self._study.weights and path in self._names:
                self._price_weights(n, result)
        return result

    def _price_activation(self, observer: Node, x: Tensor) -> None:
        (tensor,) = observer.args
        assert isinstance(tensor, Node)
        name = self._study.tensors[str(observer.target)]
        if name not in self._names:
            return
        if tensor.name not in self.channels:
            self.channels[tensor.name] = dict(zip(("low_C", "high_C"), ends_of_channels(x, tensor), strict=True))
        if any(
            source.target in self._study.tensors and self._shared(source, observer) for source in tensor.all_input_nodes
        ):
            return  # an operation that only moves what is rounded already
        self.errors.append((name, x, _rounded(x.detach(), *self._study.qparams[str(observer.target)]).sub_(x.detach())))

    def _shared(self, one: Node, other: Node) -> bool:
        tensors = self._study.tensors
        return tensors[str(one.target)] == tensors[str(other.target)]

    def _price_weights(self, layer: Node, result: Tensor) -> None:
        path = str(arguments(layer)[1].target)
        error = error_of_weights(self, layer, self._study.weights[path])
        if path in self._study.offsets:
            error = error - along_channels(self._study.offsets[path], layer, error)
        self.errors.append((path, result, error))
        self.channels[path] = {
            "shift_C": mean_of_channels(error, layer),
            "mean_C": mean_of_channels(result, layer),
            "variance_C": variance_of_channels(result, layer),
        }


def error_of_weights(running: Interpreter, layer: Node, rounded: Tensor) -> Tensor:
    """What rounded weights add to the output of a layer that is about to run."""
    (x, weight, *others), _ = running.fetch_args_kwargs_from_env(layer)
    assert callable(layer.target)
    error: Tensor = layer.target(x, rounded - weight, *([None, *others[1:]] if others else []))
    return error
