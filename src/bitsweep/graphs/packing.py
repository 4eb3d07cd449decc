"""Codes packed as tightly as their number allows: as digits of 64-bit numbers.

With L different codes, floor(64 / log2 L) of them share 64 bits: 40 ternary ones (1.6 bits each), 16 of 4 bits.
"""

import numpy as np
import torch


def digits_per_word(levels: int) -> int:
    """How many codes of so many levels fit into 64 bits."""
    count = 1
    while levels ** (count + 1) <= 1 << 64:
        count += 1
    return count


def pack(codes: torch.Tensor, lo: int, hi: int) -> torch.Tensor:
    """Pack integer codes from ``lo`` to ``hi`` into uint8 [8 W], W words of 64 bits."""
    levels = hi - lo + 1
    count = digits_per_word(levels)
    digits = codes.flatten().to(torch.int64).numpy() - lo
    digits = np.pad(digits, (0, -len(digits) % count)).astype(np.uint64).reshape(-1, count)
    words = np.zeros(len(digits), np.uint64)
    for column in range(count - 1, -1, -1):
        words = words * np.uint64(levels) + digits[:, column]
    return torch.from_numpy(words.astype("<u8").view(np.uint8))


def unpack(packed: torch.Tensor, shape: torch.Size, lo: int, hi: int, dtype: torch.dtype) -> torch.Tensor:
    """The codes that ``pack`` packed."""
    levels = np.uint64(hi - lo + 1)
    words = np.frombuffer(packed.numpy().tobytes(), "<u8").astype(np.uint64)
    digits = np.empty((len(words), digits_per_word(hi - lo + 1)), np.int64)
    for column in range(digits.shape[1]):
        digits[:, column] = words % levels
        words = words // levels
    return torch.from_numpy(digits.reshape(-1)[: shape.numel()] + lo).to(dtype).reshape(shape)
