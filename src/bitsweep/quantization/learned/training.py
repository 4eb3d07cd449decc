"""Training a graph whose weights and activations are rounded in every step, as its codes will compute."""

import math
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from bitsweep.config.precision import Grid
from bitsweep.config.recipe import Recipe
from bitsweep.graphs.observe import observe
from bitsweep.graphs.ops import LAYER_KINDS, attribute, bias_of, ensure_bias, is_layer, set_attribute
from bitsweep.quantization import grids
from bitsweep.quantization.calibration.observers import ActivationObserver
from bitsweep.quantization.learned.fake_quantization import FakeQuantize, TrainedLayer
from bitsweep.quantization.weights import ChooseWeightRange, Codes
from bitsweep.results import Curve, Shape, Splits
from bitsweep.training import loop


class TrainedNetwork(nn.Module):
    """A graph that computes with rounded weights and activations, and learns."""

    def __init__(
        self,
        graph: GraphModule,
        grid: Grid,
        choose_range: ChooseWeightRange,
        batches: Sequence[Tensor],
        *,
        normalized: Collection[str] = (),
        start: Mapping[str, Codes] = MappingProxyType({}),
        floats: Collection[str] = (),
        learned_scales: bool = False,
    ) -> None:
        """Start where the network is, with ranges chosen as if nothing was to be trained.

        Args:
            graph: with an observer on every activation that is to be rounded; its own parameters stay as they are.
            grid: of the weights.
            batches: calibration images, float32 [N, 3, H, W].
            normalized: paths of the weights into which a normalisation was folded, which then goes on learning.
            start: codes by the path of the weights, whose scales are those to start from.
            floats: paths of the weights that are not rounded.
            learned_scales: learn all scales with the weights.
        """
        super().__init__()
        self._held = (graph,)  # not a child: exported graphs refuse to be put into training mode
        self._choose_range, self._batches, self._learned_scales = choose_range, batches, learned_scales
        statistics = _statistics(graph, normalized, batches)
        self.layers, self.activations = nn.ModuleDict(), nn.ModuleDict()
        weights, biases = dict[str, Any](), dict[str, Any]()  # by their path: several layers may read the same
        for node in graph.graph.nodes:
            if is_layer(node):
                weight, bias = attribute(graph, node.args[1]), bias_of(node)
                path, codes = str(node.args[1].target), None
                if path not in floats:
                    given = start.get(path)
                    own = given.grid if given else grid.of_weights(weight.shape)
                    qparams = (given.scale, given.zero_point) if given else self._qparams(weight, own)
                    codes = FakeQuantize(own, *qparams, learned=learned_scales)
                shift = None if bias is None else attribute(graph, bias)
                layer = TrainedLayer(node, weight, shift, statistics.get(node.name), codes)
                layer.weight, layer.codes = weights.setdefault(path, (layer.weight, layer.codes))
                if bias is not None:
                    layer.beta = biases.setdefault(str(bias.target), layer.beta)
                self.layers[node.name] = layer
        for name, observer in self._observers.items():
            qparams = torch.ones(()), torch.zeros((), dtype=torch.int64)
            self.activations[name] = FakeQuantize(observer.grid, *qparams, learned=learned_scales)
        names = {observer: name for name, observer in self._observers.items()}
        self._rounds_as = {
            name: names[module]
            for name, module in graph.named_modules(remove_duplicate=False)
            if isinstance(module, ActivationObserver)
        }
        self._choose_activation_ranges()

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K] of images [N, 3, H, W], as the codes will compute them."""
        rounding = {name: self.activations[known] for name, known in self._rounds_as.items()}
        logits: Tensor = _Run(self._graph, self._layers, rounding).run(images)
        return logits

    def move(self, device: torch.device) -> "TrainedNetwork":
        """Let everything compute on a device."""
        self._graph.to(device)
        self._batches = [images.to(device) for images in self._batches]
        return self.to(device)

    @torch.no_grad()
    def choose_ranges(self) -> None:
        """Choose ranges anew that are not learned: of weights as they are, of activations on the calibration images."""
        if not self._learned_scales:
            for layer in self._layers.values():
                if layer.codes is not None:
                    layer.codes.set(*self._qparams(layer.folded[0], layer.codes.grid))
            self._choose_activation_ranges()

    def _qparams(self, weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        return grids.choose_qparams(*self._choose_range(weight, grid), grid)

    @torch.no_grad()
    def _choose_activation_ranges(self) -> None:
        observers, mode = self._observers, self.training
        for observer in observers.values():
            observer.forget()
        self.eval()
        for images in self._batches:
            _Run(self._graph, self._layers, {}).run(images)
        self.train(mode)
        for name, observer in observers.items():
            self._activations[name].set(*observer.calculate_qparams())

    @torch.no_grad()
    def finish(self) -> dict[str, Codes]:
        """Write into the graph what was learned: weights, biases and ranges of activations.

        Returns:
            The codes by the path of the weights that are rounded; the graph computes with their values.
        """
        self.move(torch.device("cpu"))
        codes = {}
        for node in [node for node in self._graph.graph.nodes if node.name in self.layers]:
            layer, path = self._layers[node.name], str(node.args[1].target)
            weight, bias = layer.folded
            if layer.codes is not None:
                grid, scale, zero_point = layer.codes.grid, layer.codes.scale.detach(), layer.codes.zero_point
                rounded = grids.quantize(weight, scale, zero_point, grid)
                codes[path] = Codes(codes=rounded, scale=scale, zero_point=zero_point, grid=grid)
                weight = codes[path].values
            set_attribute(self._graph, path, weight)
            set_attribute(self._graph, str(ensure_bias(self._graph, node).target), bias)
        for name, observer in self._observers.items():
            activation = self._activations[name]
            observer.decide(activation.scale.detach(), activation.zero_point)
        self._graph.recompile()
        return codes

    @property
    def _graph(self) -> GraphModule:
        return self._held[0]

    @property
    def _layers(self) -> dict[str, TrainedLayer]:
        return {name: layer for name, layer in self.layers.items() if isinstance(layer, TrainedLayer)}

    @property
    def _activations(self) -> dict[str, FakeQuantize]:
        return {name: rounded for name, rounded in self.activations.items() if isinstance(rounded, FakeQuantize)}

    @property
    def _observers(self) -> dict[str, ActivationObserver]:
        """The observers of the graph, each by the first of its names: tensors of one scale share theirs."""
        return {name: module for name, module in self._graph.named_children() if isinstance(module, ActivationObserver)}


def train(
    network: nn.Module,
    splits: Splits,
    *,
    recipe: Recipe,
    input_shape: Shape,
    seed: int,
    frozen_share: float,
) -> tuple[Curve, ...]:
    """Train a network in place, with fixed ranges and statistics in the last part of the epochs.

    Ranges that are not learned are chosen anew before each epoch of the first part.

    Args:
        frozen_share: how much that last part is.

    Returns:
        Losses, accuracy and learning rate of every epoch.
    """

    def before_epoch(epoch: int, epochs: int) -> None:
        if epoch >= epochs - math.ceil(frozen_share * epochs):
            freeze_normalization(network)
        elif epoch and isinstance(network, TrainedNetwork):
            network.choose_ranges()

    _, history = loop.train(
        network, splits, recipe=recipe, input_shape=input_shape, seed=seed, title=recipe.name,
        before_epoch=before_epoch,
    )  # fmt: skip
    return tuple(
        Curve(name=name, values=tuple(getattr(epoch, name) for epoch in history), step="epoch")
        for name in ("train_loss", "val_loss", "val_top1", "lr")
    )


def freeze_normalization(network: nn.Module) -> None:
    """Let a network in training mode normalise by its running statistics, and keep them."""
    for module in network.modules():
        if isinstance(module, TrainedLayer | nn.modules.batchnorm._BatchNorm):
            module.eval()


class _Run(Interpreter):
    """Runs a graph with other layers, and with rounding in the place of its observers, as far as there is any."""

    def __init__(
        self, graph: GraphModule, layers: Mapping[str, TrainedLayer], rounding: Mapping[str, nn.Module]
    ) -> None:
        super().__init__(graph)
        self._replaced, self._rounding = layers, rounding

    def run_node(self, n: Node) -> Any:
        if n.name not in self._replaced:
            return super().run_node(n)
        ((x, *_), _) = self.fetch_args_kwargs_from_env(n)
        return self._replaced[n.name](x)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target not in self._rounding:
            return super().call_module(target, args, kwargs)
        return self._rounding[target](args[0])


def _statistics(
    graph: GraphModule, normalized: Collection[str], batches: Sequence[Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance [C] of outputs of the normalised layers before their biases are added, by node."""
    layers = [node for node in graph.graph.nodes if is_layer(node) and node.args[1].target in normalized]
    if not layers:
        return {}
    sums: dict[Node, Tensor] = {}
    count: dict[Node, int] = {}

    def see(node: Node, _: tuple[Any, ...], output: Any) -> None:
        if node in layers:
            channels = output.movedim(-1 if LAYER_KINDS[node.target] == "linear" else 1, 0).flatten(1).double()
            moments = torch.stack([channels.sum(1), channels.square().sum(1)])
            sums[node] = sums.get(node, 0) + moments
            count[node] = count.get(node, 0) + channels.shape[1]

    observe(graph, batches, see)
    found = {}
    for node in layers:
        mean, square = sums[node] / count[node]
        bias = bias_of(node)
        shift = 0 if bias is None else attribute(graph, bias).double()
        found[node.name] = (mean - shift).float(), (square - mean.square()).clamp(min=0).float()
    return found
