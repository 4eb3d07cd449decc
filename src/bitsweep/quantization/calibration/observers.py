"""Observers of activations during calibration, in the form that torchao's PT2E flow needs."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torchao.quantization.pt2e.observer import ObserverBase
from torchao.quantization.pt2e.quantizer import QuantizationSpec

from bitsweep.config.precision import Grid
from bitsweep.quantization.calibration.histograms import Histogram, clipped_share, histogram, merge
from bitsweep.quantization.calibration.ranges import Range
from bitsweep.quantization.grids import choose_qparams, storage_dtype

ChooseRange = Callable[[Histogram, Grid], Range]


def activation_spec(
    grid: Grid, choose_range: ChooseRange, *, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> QuantizationSpec:
    """How to quantize an activation.

    Args:
        bounds: beyond them the next operation is constant, so that values there need no code.
    """
    return QuantizationSpec(
        dtype=storage_dtype(grid),
        observer_or_fake_quant_ctr=ActivationObserver.with_args(grid=grid, choose_range=choose_range, bounds=bounds),
        quant_min=grid.lo,
        quant_max=grid.hi,
        qscheme=torch.per_tensor_symmetric if grid.symmetric else torch.per_tensor_affine,
    )


class ActivationObserver(ObserverBase):  # type: ignore[misc]
    """Collects a histogram of everything it sees, and chooses scale and zero point from it."""

    def __init__(self, *, grid: Grid, choose_range: ChooseRange, bounds: tuple[float, float], **spec: Any) -> None:
        super().__init__(dtype=spec["dtype"], is_dynamic=False)
        self.quant_min, self.quant_max, self.qscheme = spec["quant_min"], spec["quant_max"], spec["qscheme"]
        self.grid, self.choose_range, self.bounds = grid, choose_range, bounds
        self.seen: Histogram | None = None
        self._chosen: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pass ``x`` through, and count its values."""
        new = histogram(x, of_images=True, bounds=self.bounds)
        self.seen, self._chosen = new if self.seen is None else merge(self.seen, new), None
        return x

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point, both of shape []."""
        assert self.seen is not None, "no image was passed through the network"
        if self._chosen is None:
            self._chosen = choose_qparams(*self.choose_range(self.seen, self.grid), self.grid)
        return self._chosen

    def forget(self) -> None:
        """Start anew."""
        self.seen = self._chosen = None

    def decide(self, scale: torch.Tensor, zero_point: torch.Tensor) -> None:
        """Take scale and zero point, both of shape [], from elsewhere."""
        self._chosen = scale, zero_point

    @property
    def clipped_share(self) -> float:
        """Share of what it has seen, in [0, 1], that lies beyond the ends of the range."""
        assert self.seen is not None
        return clipped_share(self.seen, *self.calculate_qparams(), self.grid)
