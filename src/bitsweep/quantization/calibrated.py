"""What all methods share that choose ranges: the knobs of range selection, and the images to choose them on."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from bitsweep.artifacts import Splits
from bitsweep.axes import Count, Method, Share, axis

if TYPE_CHECKING:
    import torch

    from bitsweep.quantization.observers import ChooseRange
    from bitsweep.quantization.weights import ChooseWeightRange

WeightRange = Literal["minmax", "percentile", "mse", "entropy", "aciq_laplace", "aciq_gauss", "sigma"]
ActivationRange = Literal[WeightRange, "moving_average"]


@axis
class CalibratedMethod(Method):
    """A method that chooses the ranges of weights from themselves, and those of activations on a few training images.

    Attributes:
        activation_range: ``minmax``; ``moving_average`` of the ends of the batches; ``percentile``; ``mse``, the least
            squared error; ``entropy``, the least Kullback-Leibler divergence; ``aciq_laplace`` and ``aciq_gauss``, the
            least expected error for that distribution; ``sigma``, a multiple of the standard deviation.
        weight_range: the same, from the weights of the tensor or of each channel.
        percentile: of the values, in percent; used with ``percentile``.
        sigmas: standard deviations on each side of the mean; used with ``sigma``.
        momentum: share of the past in the moving average.
        calibration_images: training images on which activations are watched, at most.
        calibration_batch: images at a time.
    """

    activation_range: ActivationRange = "mse"
    weight_range: WeightRange = "minmax"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    sigmas: Annotated[float, Field(gt=0)] = 3.0
    momentum: Share = 0.9
    calibration_images: Count = 256
    calibration_batch: Count = 32

    def choose_activation_range(self) -> "ChooseRange":
        """From the histogram of an activation to its range."""
        return self._chooser(self.activation_range)

    def choose_weight_range(self) -> "ChooseWeightRange":
        """From the weights of a layer to their range, for each channel where the grid has a scale for each."""
        from bitsweep.quantization import ranges

        if self.weight_range == "minmax":
            return ranges.minmax_weight_range
        if self.weight_range == "mse":
            return ranges.mse_weight_range
        return partial(ranges.histogram_weight_range, choose_range=self._chooser(self.weight_range))

    def calibration_batches(self, splits: Splits, *, image_size: int, seed: int) -> "Iterator[torch.Tensor]":
        """Training images as the network sees them, float32 [N, 3, S, S]."""
        from bitsweep.splits import calibration_images, preprocessed

        images = calibration_images(splits, self.calibration_images, seed)
        return preprocessed(images, splits, image_size=image_size, batch=self.calibration_batch)

    def _chooser(self, name: str) -> "ChooseRange":
        from bitsweep.quantization import ranges

        choosers: dict[str, Any] = {
            "minmax": ranges.minmax_range,
            "moving_average": partial(ranges.moving_average_range, momentum=self.momentum),
            "percentile": partial(ranges.percentile_range, percentile=self.percentile),
            "mse": ranges.mse_range,
            "entropy": ranges.entropy_range,
            "aciq_laplace": partial(ranges.aciq_range, distribution="laplace"),
            "aciq_gauss": partial(ranges.aciq_range, distribution="gauss"),
            "sigma": partial(ranges.sigma_range, sigmas=self.sigmas),
        }
        chooser: ChooseRange = choosers[name]
        return chooser
