"""Uniform quantization of tensors: Q(x) = s (clamp(round(x / s) + z, lo, hi) - z).

Rounding is half to even; codes are clamped and never wrap. A scale belongs to the whole tensor (shape []) or to each
slice of its first dimension (shape [C]), as the grid says.

Paper: Nagel et al., "A White Paper on Neural Network Quantization" (arXiv 2106.08295), section 2.
"""

import math

import torch

from bitsweep.config.precision import Grid
from bitsweep.errors import CompressionError

#: Scales of channels stay within this factor of the largest, so that an int32 bias on the scale of a dead channel
#: neither overflows nor loses its value.
CHANNEL_SCALE_RATIO = 2.0**-16


def storage_dtype(grid: Grid) -> torch.dtype:
    """The smallest integer type that holds the codes of a grid."""
    if grid.bits <= 8:
        return torch.int8 if grid.signed else torch.uint8
    return torch.int16 if grid.signed else torch.uint16


def stored_bits(shape: torch.Size, grid: Grid) -> int:
    """Bits that a tensor needs as stored: codes, float32 scales, and the zero points of an affine grid.

    Codes of up to 6 bits are packed as tightly as their number allows, log2 of the levels each; wider ones take whole
    bytes, as engines keep them.
    """
    code_bits = math.log2(grid.hi - grid.lo + 1) if grid.bits <= 6 else 8 if grid.bits <= 8 else 16
    scales = shape[0] if grid.per_channel else 1
    return math.ceil(math.prod(shape) * code_bits + scales * (32 + (0 if grid.symmetric else code_bits)))


def choose_qparams(lo: torch.Tensor, hi: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point that spread the codes of a grid over a range.

    The range is widened to contain 0, which is always represented exactly. An empty range counts as [-1, 1].

    Args:
        lo, hi: ends of the range, shape [] or [C].

    Returns:
        scale (float32, positive) and zero point (int64), both of the shape of ``lo``.

    Raises:
        CompressionError: an end is not finite, or the ends are the wrong way round.
    """
    lo, hi = lo.double(), hi.double()
    if not (torch.isfinite(lo).all() and torch.isfinite(hi).all()):
        raise CompressionError("a range to quantize is not finite; look for inf or nan in weights and images")
    if (lo > hi).any():
        raise CompressionError("a range to quantize ends below its start; calibrate on at least one image")
    lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    scale = torch.maximum(-lo, hi) / grid.hi if grid.symmetric else (hi - lo) / (grid.hi - grid.lo)
    scale = torch.maximum(scale, scale.max() * CHANNEL_SCALE_RATIO)
    smallest = torch.finfo(torch.float32).tiny * 4  # its reciprocal is finite, too
    scale = torch.where(scale < smallest, 1 / grid.hi, scale).float()
    if grid.symmetric:
        return scale, torch.zeros_like(scale, dtype=torch.int64)
    return scale, (grid.lo - torch.round(lo / scale)).clamp(grid.lo, grid.hi).long()


def quantize(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Codes of finite values, in the grid's storage type: clamp(round(x / s) + z, lo, hi)."""
    return _codes(x, scale, zero_point, grid).to(storage_dtype(grid))


def dequantize(codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """Values of codes: s (q - z), float32."""
    return (codes.float() - _along_channels(zero_point, codes).float()) * _along_channels(scale, codes)


def fake_quantize(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Values rounded to the grid: ``dequantize(quantize(x))``."""
    return dequantize(_codes(x, scale, zero_point, grid), scale, zero_point)


def clipped_share(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, grid: Grid) -> float:
    """Share of values in [0, 1] that lie outside the grid and are clamped to its ends."""
    unclamped = torch.round(x / _along_channels(scale, x)) + _along_channels(zero_point, x)
    return ((unclamped < grid.lo) | (unclamped > grid.hi)).double().mean().item()


def sqnr_db(reference: torch.Tensor, approximation: torch.Tensor) -> float:
    """Signal-to-quantization-noise ratio in decibel, 10 log10(sum r^2 / sum (r - a)^2); ``inf`` if nothing differs."""
    noise = torch.linalg.vector_norm(reference - approximation, dtype=torch.float64).item()
    signal = torch.linalg.vector_norm(reference, dtype=torch.float64).item()
    if noise == 0:
        return math.inf
    return 20 * math.log10(signal / noise) if signal > 0 else -math.inf


def _codes(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, grid: Grid) -> torch.Tensor:
    codes = torch.round(x / _along_channels(scale, x)) + _along_channels(zero_point, x)
    return codes.clamp(grid.lo, grid.hi)


def _along_channels(parameter: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """View a [C] parameter so that it broadcasts along the first dimension of ``x``."""
    return parameter if parameter.ndim == 0 else parameter.view(-1, *[1] * (x.ndim - 1))
