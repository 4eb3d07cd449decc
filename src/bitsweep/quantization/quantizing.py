"""Steps that all quantizing methods share, before and after the weights are put on a grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from bitsweep.config.configurable import Count, Share, configurable
from bitsweep.config.method import Method
from bitsweep.config.precision import Grid, Precision, Scheme
from bitsweep.config.recipe import Recipe
from bitsweep.results import Compression, Curve, Shape, Splits, Table

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule

    from bitsweep.graphs.ops import Layer
    from bitsweep.quantization.calibration.observers import ChooseRange
    from bitsweep.quantization.guard.guarded import Guarded
    from bitsweep.quantization.weights import ChooseWeightRange, Codes

WeightRange = Literal["minmax", "percentile", "mse", "entropy", "aciq_laplace", "aciq_gauss", "sigma", "std"]
#: Pixels of the calibration images that run at a time, at most: 8 images of 224 x 224.
PIXELS = 8 * 224**2
ActivationRange = Literal[WeightRange, "moving_average", "peak_or_std"]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A float network before its weights are put on a grid.

    Attributes:
        guarded: the graph without batch normalisation, and without hard-sigmoids after layers, as the guard leaves it.
        batches: calibration images, float32 [N, 3, H, W].
        normalized: paths of the weights that a normalisation was folded into.
    """

    guarded: "Guarded"
    batches: "Sequence[torch.Tensor]"
    normalized: tuple[str, ...]

    @property
    def graph(self) -> "GraphModule":
        """The network."""
        return self.guarded.graph


@configurable
class QuantizingMethod(Method):
    """A method that ends in codes, with ranges from the weights and from a few training images.

    Attributes:
        supports_half: whether it can also produce float16 and bfloat16.
        replaces_layers: whether layers get other weights, so that the guard looks at activations only.
        guard: round the network on a few calibration images first, and where its logits are too far from those of the
            float network, mend the tensors and layers that cost most. Without it they are only named.
        equalize: even out the ranges of channels across pairs of layers first (arXiv 1906.04721).
        absorb_bias: move what large biases always add into the next layer (same paper).
        activation_range: ``minmax``; ``moving_average`` of the ends of the batches; ``percentile``; ``mse``, the least
            squared error; ``entropy``, the least Kullback-Leibler divergence; ``aciq_laplace`` and ``aciq_gauss``, the
            least expected error for that distribution; ``sigma``, a multiple of the standard deviation around the
            mean; ``std``, the same around 0 however large values are; ``peak_or_std``, the largest value
            or 4 standard deviations, whichever is more.
        weight_range: the same, from the weights of the tensor or of each channel.
        percentile: of the values, in percent; used with ``percentile``.
        sigmas: standard deviations on each side; used with ``sigma`` and ``std``.
        momentum: share of the past in the moving average.
        calibration_images: training images on which activations are watched, at most.
        calibration_batch: images at a time, at most; of more than 112 x 112 pixels fewer, which run faster, but for
            ``moving_average``, which goes by batches.
        calibration_seed: which of them; added to the cell's seed, which also trains another baseline.
    """

    supports_half: ClassVar[bool] = False
    replaces_layers: ClassVar[bool] = False

    guard: bool = True
    equalize: bool = False
    absorb_bias: bool = False
    activation_range: ActivationRange = "mse"
    weight_range: WeightRange = "minmax"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    sigmas: Annotated[float, Field(gt=0)] = 3.0
    momentum: Share = 0.9
    calibration_images: Count = 256
    calibration_batch: Count = 32
    calibration_seed: Annotated[int, Field(ge=0)] = 0

    def unsupported(self, precision: Precision) -> str | None:
        """Weights may be codes, with activations as codes or in float32; or both are half precision, or stored so."""
        weights, activations = precision.weights, precision.activations
        if isinstance(weights, Grid):
            if isinstance(activations, Grid) or activations == "float32":
                return None
            return (
                f"method={self.name} cannot compute {activations} activations with integer weights: "
                "choose precision.activations=float32, or integers"
            )
        if weights == activations == "float32":
            if self.compresses_float:
                return None
            return (
                f"method={self.name} has nothing to do in fp32: choose method=none, or a lower precision such as int8"
            )
        if not self.supports_half:
            return f"method={self.name} rounds to integers, not to {weights}: choose method=ptq"
        if activations in ("float32", weights):
            return None
        return (
            f"method={self.name} cannot compute {activations} activations with {weights} weights: "
            "choose integer weights with integer or float32 activations, or one float format for both"
        )

    def prepared(
        self, model: "torch.nn.Module", splits: Splits, *, input_shape: Shape, scheme: Scheme, seed: int
    ) -> Prepared:
        """The float network as a graph without batch normalisation, equalised if asked for; and calibration images.

        What the guard does is done to it, too; nothing where weights become no codes.

        Raises:
            CompressionError: the network cannot be traced, or a parameter is not finite.
        """
        from bitsweep.graphs import tracing
        from bitsweep.graphs.folding import fold_hard_sigmoid
        from bitsweep.quantization.fitting import fitting
        from bitsweep.quantization.rewrites.equalization import absorb_high_biases, equalize

        graph, normalized = tracing.folded(model, input_shape=input_shape)
        batches = self.calibration_batches(splits, input_shape=input_shape, seed=seed)
        if self.equalize:
            equalize(graph)
        if self.absorb_bias:
            absorb_high_biases(graph, fitting(graph, batches))
        fold_hard_sigmoid(graph)
        return Prepared(guarded=self._guarded(graph, batches, scheme), batches=batches, normalized=normalized)

    def _guarded(self, graph: "GraphModule", batches: "Sequence[torch.Tensor]", scheme: Scheme) -> "Guarded":
        import torch

        from bitsweep.quantization.guard.guarded import Guarded
        from bitsweep.quantization.guard.search import IMAGES, Guard
        from bitsweep.quantization.placement import Placement
        from bitsweep.quantization.weights import nearest_codes

        grid = scheme.weights
        placement = Placement(fuses_functions=scheme.fuses_functions, yields_floats=scheme.yields_floats)
        if not isinstance(grid, Grid):
            return Guarded(graph=graph, placement=placement)
        choose_range = self.choose_weight_range()

        def rounded(weight: torch.Tensor) -> torch.Tensor:
            return nearest_codes(weight, grid, choose_range).values

        guard = Guard(
            round_weights=None if self.replaces_layers else rounded,
            weights=grid,
            activations=scheme.activations if isinstance(scheme.activations, Grid) else None,
            choose_range=self.choose_activation_range(),
            placement=placement,
        )
        images = torch.cat(list(batches[: -(-IMAGES // len(batches[0]))]))[:IMAGES]
        return guard.protect(graph, images) if self.guard else guard.looked_at(graph, images)

    def finished(
        self,
        prepared: Prepared,
        codes: "Mapping[str, Codes]",
        *,
        originals: "tuple[Layer, ...]",
        scheme: Scheme,
        curves: tuple[Curve, ...] = (),
        tables: tuple[Table, ...] = (),
        parameters: "Mapping[str, torch.Tensor] | None" = None,
        restores_all: bool = False,
        restores_scales: bool = True,
    ) -> Compression:
        """The program of a network with rounded weights: activations watched and quantized, weights stored as codes.

        Args:
            prepared: its graph computes with the values of the codes; it is used up.
            codes: of the weights, by their path.
            originals: the layers of the float network.
            parameters: of the float network, by path, where layers are to yield the same means and scales as there.
            restores_all: whether this goes for all layers, and not for those alone that the guard asks for.
            restores_scales: whether the scales are restored, and not the means alone.
        """
        from bitsweep.quantization.placement import quantize_activations
        from bitsweep.quantization.rewrites.restoring import restore_outputs, scaled, with_parameters
        from bitsweep.quantization.storing import stored

        graph, guarded, clipped = prepared.graph, prepared.guarded, dict[str, float]()
        restores = parameters is not None and (restores_all or guarded.corrected)
        exact = with_parameters(graph, parameters) if parameters is not None and restores else None
        if isinstance(scheme.activations, Grid):
            graph, clipped = quantize_activations(
                graph, scheme.activations, self.choose_activation_range(), prepared.batches, guarded.placement
            )
        if exact is not None:
            only = None if restores_all else guarded.corrected
            alike = {path for path, each in codes.items() if not each.scale.ndim}
            factors = restore_outputs(graph, exact, prepared.batches, only=only, scales=restores_scales, alike=alike)
            codes = {path: each.times(factors[path]) if path in factors else each for path, each in codes.items()}
            paths = ((each, f"{each.name}.weight") for each in originals)
            originals = tuple(
                replace(each, weight=scaled(each.weight, factors[path])) if path in factors else each
                for each, path in paths
            )
        return stored(
            graph, codes, originals=originals, clipped=clipped, curves=curves,
            tables=(*guarded.tables, *tables), remedies=guarded.remedies_by_layer(),
        )  # fmt: skip

    def trained(
        self,
        prepared: Prepared,
        splits: Splits,
        *,
        recipe: Recipe,
        scheme: Scheme,
        input_shape: Shape,
        seed: int,
        frozen_share: float,
        learned_scales: bool,
        originals: "tuple[Layer, ...] | None" = None,
        start: "Mapping[str, Codes] | None" = None,
    ) -> Compression:
        """The program of a network that is trained with rounded weights and activations.

        Args:
            prepared: its graph is used up.
            frozen_share: of the epochs, at the end, with fixed ranges and statistics.
            originals: the layers of the float network, if the graph has others by now.
            start: codes of weights to start from, by their path.
        """
        from bitsweep.graphs import ops
        from bitsweep.quantization.learned.training import TrainedNetwork, train
        from bitsweep.quantization.placement import convert, observe
        from bitsweep.quantization.storing import stored
        from bitsweep.training.loop import choose_device

        assert isinstance(scheme.weights, Grid)
        graph, clipped = prepared.graph, dict[str, float]()
        originals = ops.layers(graph) if originals is None else originals
        if isinstance(scheme.activations, Grid):
            placement = prepared.guarded.placement
            graph = observe(graph, scheme.activations, self.choose_activation_range(), placement)
        network = TrainedNetwork(
            graph, scheme.weights, self.choose_weight_range(), prepared.batches,
            normalized=prepared.normalized, start=start or {}, floats=prepared.guarded.floats,
            learned_scales=learned_scales,
        )  # fmt: skip
        curves = train(
            network.move(choose_device(recipe.device)), splits, recipe=recipe, input_shape=input_shape, seed=seed,
            frozen_share=frozen_share,
        )  # fmt: skip
        codes = network.finish()
        if isinstance(scheme.activations, Grid):
            graph, clipped = convert(graph)
        return stored(
            graph, codes, originals=originals, clipped=clipped, curves=curves,
            tables=prepared.guarded.tables, remedies=prepared.guarded.remedies_by_layer(),
        )  # fmt: skip

    def weight_qparams(self, weight: "torch.Tensor", grid: Grid) -> "tuple[torch.Tensor, torch.Tensor]":
        """Scale and zero point of a layer's weights, of each channel where the grid has a scale for each."""
        from bitsweep.quantization.grids import choose_qparams

        grid = grid.of_weights(weight.shape)
        return choose_qparams(*self.choose_weight_range()(weight, grid), grid)

    def input_qparams(
        self, graph: "GraphModule", format: Grid | str, batches: "Sequence[torch.Tensor]"
    ) -> "dict[str, tuple[torch.Tensor, torch.Tensor, Grid]]":
        """Scale, zero point and grid of each layer's input, by the name of its node; nothing for a float format."""
        from bitsweep.quantization.analysis.sensitivity import input_qparams

        if not isinstance(format, Grid):
            return {}
        return input_qparams(graph, format, self.choose_activation_range(), batches)

    def choose_activation_range(self) -> "ChooseRange":
        """From the histogram of an activation to its range."""
        return self._chooser(self.activation_range)

    def choose_weight_range(self) -> "ChooseWeightRange":
        """From the weights of a layer to their range, for each channel where the grid has a scale for each."""
        from bitsweep.quantization.calibration import ranges

        if self.weight_range == "minmax":
            return ranges.minmax_weight_range
        if self.weight_range == "mse":
            return ranges.mse_weight_range
        return partial(ranges.histogram_weight_range, choose_range=self._chooser(self.weight_range))

    def takes_exported(self, scheme: Scheme) -> bool:
        """What is rounded is the graph of the network."""
        return True

    def calibrated_on(self, available: int, scheme: Scheme) -> int:
        """As many as ``calibration_images`` asks for, if there are, and none for half precision."""
        return min(self.calibration_images, available) if isinstance(scheme.weights, Grid) else 0

    def calibration_batches(self, splits: Splits, *, input_shape: Shape, seed: int) -> "Sequence[torch.Tensor]":
        """Training images as the network sees them, float32 [N, 3, H, W]."""
        from bitsweep.data.batches import Batches
        from bitsweep.data.sampling import calibration_images

        images = calibration_images(splits, self.calibration_images, seed + self.calibration_seed)
        _, height, width = input_shape
        size = self.calibration_batch
        if self.activation_range != "moving_average":  # which is asked to go by batches of this size
            size = min(size, max(1, PIXELS // (height * width)))
        return Batches(images=images, splits=splits, input_shape=input_shape, size=size)

    def _chooser(self, name: str) -> "ChooseRange":
        from bitsweep.quantization.calibration import ranges

        choosers: dict[str, Any] = {
            "minmax": ranges.minmax_range,
            "moving_average": partial(ranges.moving_average_range, momentum=self.momentum),
            "percentile": partial(ranges.percentile_range, percentile=self.percentile),
            "mse": ranges.mse_range,
            "entropy": ranges.entropy_range,
            "aciq_laplace": partial(ranges.aciq_range, distribution="laplace"),
            "aciq_gauss": partial(ranges.aciq_range, distribution="gauss"),
            "sigma": partial(ranges.sigma_range, sigmas=self.sigmas),
            "std": partial(ranges.std_range, sigmas=self.sigmas),
            "peak_or_std": ranges.peak_or_std_range,
        }
        chooser: ChooseRange = choosers[name]
        return chooser
