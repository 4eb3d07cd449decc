"""Rounding inside a network that learns: gradients pass straight through, and given where values are clamped.

Batch normalisation is folded while it still learns: with r = gamma / sigma of the running statistics, weights are
rounded as W r, as they will be stored, and their products divided by r before they are normalised by the statistics of
the batch.

Papers: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
(arXiv 1712.05877), section 3; Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference" (arXiv
1806.08342), section 3.2.2; for learned scales Esser et al., "Learned Step Size Quantization" (arXiv 1902.08153), and
Jain et al., "Trained Quantization Thresholds" (arXiv 1903.08066), section 3.3, for their logarithms.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.utils import parametrize

from bitsweep.config.precision import Grid
from bitsweep.graphs.ops import arguments

#: Share of a batch in the running statistics of a normalisation, and what is added to its variance.
MOMENTUM, EPS = 0.1, 1e-5


def straight_through(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """Q(x) = s (clamp(round(x / s) + z, lo, hi) - z), with the gradients of learned step size quantization.

    dQ/dx = 1 within the grid and 0 beyond; dQ/ds = round(x / s) - x / s within, and lo - z or hi - z beyond.

    Args:
        x: [...], or [C, ...] where scale and zero point are [C].
    """
    along = (-1, *[1] * (x.ndim - 1)) if scale.ndim else ()
    s, z = scale.reshape(along), zero_point.reshape(along)
    ratio = x / s
    codes = (ratio.detach().round() + z).clamp(grid.lo, grid.hi)
    exact = (ratio + z).clamp(grid.lo, grid.hi)
    return (codes + (exact - exact.detach()) - z) * s


class FakeQuantize(nn.Module):
    """Rounds what passes through it to a grid, of which the scale may be learned.

    What is learned is log(s): a scale stays positive, and a step of Adam changes it by a share, whatever its size. On
    Adam the factor has no effect that the paper puts on the gradient, so that there is none here.
    """

    zero_point: Tensor

    def __init__(self, grid: Grid, scale: Tensor, zero_point: Tensor, *, learned: bool) -> None:
        super().__init__()
        self.grid, self.learned = grid, learned
        if learned:
            self.log_scale = nn.Parameter(scale.log())
        else:
            self.register_buffer("fixed_scale", scale.clone())
        self.register_buffer("zero_point", zero_point.clone())

    @property
    def scale(self) -> Tensor:
        """s, with the gradient of its logarithm where it is learned."""
        return self.log_scale.exp() if self.learned else self.get_buffer("fixed_scale")

    def forward(self, x: Tensor) -> Tensor:
        """Q(x)."""
        grid, scale, zero_point = self.grid, self.scale, self.zero_point
        if self.learned:
            return straight_through(x, scale, zero_point, grid)
        if scale.ndim:
            return torch.fake_quantize_per_channel_affine(x, scale, zero_point.int(), 0, grid.lo, grid.hi)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point.int(), grid.lo, grid.hi)

    @torch.no_grad()
    def set(self, scale: Tensor, zero_point: Tensor) -> None:
        """Replace scale and zero point."""
        if self.learned:
            self.log_scale.copy_(scale.log())
        else:
            self.get_buffer("fixed_scale").copy_(scale)
        self.zero_point.copy_(zero_point)


class TrainedLayer(nn.Module):
    """A convolution or linear layer whose weights are rounded, with the normalisation of its output if it has one.

    It starts as the float layer: the normalisation of an output with mean m and variance v has gamma = sqrt(v + eps)
    and beta = bias + m.

    Attributes:
        codes: rounds the weights; None where they stay float.
    """

    mean: Tensor
    variance: Tensor

    def __init__(
        self,
        layer: Node,
        weight: Tensor,
        bias: Tensor | None,
        statistics: tuple[Tensor, Tensor] | None,
        codes: FakeQuantize | None,
    ) -> None:
        super().__init__()
        self.operation: Any = layer.target
        self.options = arguments(layer)[3:]
        self.weight, self.codes = nn.Parameter(weight.clone()), codes
        self.normalized = statistics is not None
        shift = torch.zeros(len(weight)) if bias is None else bias.clone()
        if statistics is not None:
            mean, variance = statistics
            self.gamma = nn.Parameter((variance + EPS).sqrt())
            self.register_buffer("mean", mean.clone())
            self.register_buffer("variance", variance.clone())
            shift += mean
        self.beta = nn.Parameter(shift)

    @property
    def folded(self) -> tuple[Tensor, Tensor]:
        """Weights and bias that include the normalisation by the running statistics."""
        if not self.normalized:
            return self.weight, self.beta
        factor = self.gamma * (self.variance + EPS).rsqrt()
        return self.weight * factor.reshape(-1, *[1] * (self.weight.ndim - 1)), self.beta - self.mean * factor

    def forward(self, x: Tensor) -> Tensor:
        """Output of the layer and its normalisation."""
        weight, bias = self.folded
        rounded = weight if self.codes is None else self.codes(weight)
        if not self.normalized or not self.training:
            return self._operate(x, rounded, bias)
        factor = self.gamma * (self.variance + EPS).rsqrt()
        products = self._operate(x, rounded, None)
        raw = products / factor.reshape(1, -1, *[1] * (products.ndim - 2))
        return F.batch_norm(raw, self.mean, self.variance, self.gamma, self.beta, True, MOMENTUM, EPS)

    def _operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = self.operation(x, weight, bias, *self.options)
        return result


class _Rounded(nn.Module):
    """Parameters as they are in another float format, with the gradient of what they were."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, parameter: Tensor) -> Tensor:
        return parameter + (parameter.to(self.dtype).to(parameter.dtype) - parameter).detach()


@contextmanager
def stored_as(network: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let convolutions and linear layers compute, within the block, with parameters rounded to a float format.

    Gradients pass straight through the rounding; after the block the parameters are what they have become, not rounded.
    """
    rounded = [
        (module, name)
        for module in network.modules()
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)
        for name, _ in list(module.named_parameters(recurse=False))
    ]
    for module, name in rounded:
        parametrize.register_parametrization(module, name, _Rounded(dtype))
    try:
        yield
    finally:
        for module, name in rounded:
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)
