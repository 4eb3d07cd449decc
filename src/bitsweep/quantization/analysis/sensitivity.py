"""How much quantizing each layer changes the outputs of a network."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from bitsweep.config.precision import Grid
from bitsweep.graphs.observe import observe
from bitsweep.graphs.ops import arguments, is_layer
from bitsweep.quantization import grids
from bitsweep.quantization.calibration.histograms import Histogram, histogram, merge
from bitsweep.quantization.calibration.observers import ChooseRange
from bitsweep.quantization.weights import Codes
from bitsweep.results import Table


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """A layer as its codes compute it.

    Attributes:
        weight: rounded values.
        activation: scale, zero point and grid of the layer's input; None where that stays float.
    """

    weight: Tensor
    activation: tuple[Tensor, Tensor, Grid] | None = None


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What rounding does to the logits of some images.

    Attributes:
        sqnr_db: signal-to-quantization-noise ratio of the logits.
        divergence: Kullback-Leibler divergence of the probabilities from those of the float network, in nats, mean.
        top1: accuracy, in [0, 1].
        expected_loss: share of the images, in [0, 1], that the float network has right and that noise like this makes
            wrong, see ``expected_loss``.
    """

    sqnr_db: float
    divergence: float
    top1: float
    expected_loss: float


def expected_loss(margin_N: Tensor, noise_N: Tensor) -> float:
    """Share of N images that are right and that noise is expected to make wrong.

    With the margin m_i of the label's logit over the best other one, and the noise e_i that rounding adds to it, of
    which all images together tell the power s^2 = mean e_i^2, it is the mean of P(m_i + s z < 0) over images with
    m_i > 0, for normal z. Of few images it tells far more than counting those that change, which depends on chance.
    """
    spread = noise_N.square().mean().sqrt()
    changed_N = torch.erfc(margin_N / (spread * math.sqrt(2)).clamp(min=1e-30)) / 2
    return float(changed_N[margin_N > 0].sum() / len(margin_N))


def _margins(logits_NK: Tensor, labels_N: Tensor, others_N: Tensor) -> Tensor:
    """By how much the logits of the labels are above those of others, [N]."""
    of_labels, of_others = (logits_NK.gather(1, each[:, None]) for each in (labels_N, others_N))
    return (of_labels - of_others)[:, 0]


@torch.no_grad()
def effects(
    graph: GraphModule,
    changes: Sequence[Mapping[str, Rounding | None]],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    base: Mapping[str, Rounding],
    parameters: Mapping[str, Tensor],
) -> list[Effect]:
    """What each change does that is made to a network, on its own.

    What a change cannot reach, because it runs before, is computed once for all of them.

    Args:
        graph: a float network; its layers compute with ``parameters``.
        changes: roundings by the name of the layer's node, in the place of those of ``base``; None for float.
        batches: images, float32 [N, 3, H, W], with their labels [N].
        base: the roundings of the network that is changed, by the name of the layer's node.
        parameters: of the float network, by path.
    """
    order = {node.name: index for index, node in enumerate(graph.graph.nodes)}
    noise, signal, divergence, correct, total = (*torch.zeros(4, len(changes), dtype=torch.float64), 0)
    margins, added = list[Tensor](), [list[Tensor]() for _ in changes]
    for images, labels in batches:
        exact = _Rounded(graph, {}, parameters).run(images).double()
        start = _Rounded(graph, base, parameters, keep=True)
        start.run(images)
        total += len(labels)
        others = exact.scatter(1, labels[:, None], -math.inf).argmax(1)
        margins.append(_margins(exact, labels, others))
        for index, change in enumerate(changes):
            first = min((order[name] for name in change), default=len(order) - 1)
            known = {node: value for node, value in start.env.items() if order[node.name] < first}
            changed = {name: rounding for name, rounding in {**base, **change}.items() if rounding is not None}
            logits = _Rounded(graph, changed, parameters).run(images, initial_env=known).double()
            noise[index] += (logits - exact).square().sum()
            signal[index] += exact.square().sum()
            divergence[index] += F.kl_div(logits.log_softmax(1), exact.log_softmax(1), reduction="sum", log_target=True)
            correct[index] += (logits.argmax(1) == labels).sum()
            added[index].append(_margins(logits - exact, labels, others))
    return [
        Effect(
            sqnr_db=float(10 * torch.log10(signal[index] / noise[index])),
            divergence=max(0.0, float(divergence[index] / total)),
            top1=float(correct[index] / total),
            expected_loss=expected_loss(torch.cat(margins), torch.cat(added[index])),
        )
        for index in range(len(changes))
    ]


def input_qparams(
    graph: GraphModule, grid: Grid, choose_range: ChooseRange, batches: Iterable[Tensor]
) -> dict[str, tuple[Tensor, Tensor, Grid]]:
    """Scale, zero point and grid of each layer's input, by the name of its node.

    Args:
        batches: calibration images, float32 [N, 3, H, W].
    """
    histograms: dict[str, Histogram] = {}

    def see(node: Node, inputs: tuple[Any, ...], _: Any) -> None:
        if is_layer(node):
            new = histogram(inputs[0], of_images=True)
            histograms[node.name] = merge(histograms[node.name], new) if node.name in histograms else new

    observe(graph, batches, see)
    return {name: (*grids.choose_qparams(*choose_range(seen, grid), grid), grid) for name, seen in histograms.items()}


def layer_paths(graph: GraphModule) -> dict[str, str]:
    """Path of the weights of each layer by the name of its node."""
    return {node.name: str(arguments(node)[1].target) for node in graph.graph.nodes if is_layer(node)}


def sensitivity_table(
    graph: GraphModule,
    codes: Mapping[str, Codes],
    activations: Mapping[str, tuple[Tensor, Tensor, Grid]],
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    parameters: Mapping[str, Tensor],
) -> Table:
    """What quantizing each layer alone does to the logits, and what all the others do together.

    Args:
        codes: of the weights, by their path.
        activations: scale, zero point and grid of each layer's input, by the name of its node.
        batches, parameters: as for ``effects``.
    """
    layers = layer_paths(graph)
    rounded = {
        name: Rounding(weight=codes[path].values, activation=activations.get(name)) for name, path in layers.items()
    }
    alone = effects(graph, [{name: each} for name, each in rounded.items()], batches, base={}, parameters=parameters)
    others = effects(graph, [{name: None} for name in rounded], batches, base=rounded, parameters=parameters)
    rows = [
        (path.removesuffix(".weight"), each.sqnr_db, 100 * each.top1, rest.sqnr_db, 100 * rest.top1)
        for path, each, rest in zip(layers.values(), alone, others, strict=True)
    ]
    columns = ("layer", "alone: SQNR dB", "alone: top-1 %", "all others: SQNR dB", "all others: top-1 %")
    return Table(name="sensitivity", columns=columns, rows=tuple(rows))


class _Rounded(Interpreter):
    """Runs a float network with some of its layers rounded."""

    def __init__(
        self,
        graph: GraphModule,
        roundings: Mapping[str, Rounding],
        parameters: Mapping[str, Tensor],
        *,
        keep: bool = False,
    ) -> None:
        super().__init__(graph, garbage_collect_values=not keep)
        self._roundings, self._parameters = roundings, parameters

    def run_node(self, n: Node) -> Any:
        if n.op == "get_attr":
            return self._parameters[str(n.target)]
        if n.name not in self._roundings:
            return super().run_node(n)
        rounding = self._roundings[n.name]
        (x, _, *others), _ = self.fetch_args_kwargs_from_env(n)
        if rounding.activation is not None:
            x = grids.fake_quantize(x, *rounding.activation)
        assert callable(n.target)
        return n.target(x, rounding.weight, *others)
