"""Images as a network sees them, a batch at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from bitsweep.data.preprocessing import preprocessed
from bitsweep.results import Array, Shape, Splits

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Batches(Sequence["torch.Tensor"]):
    """Batches of float32 images [N, C, H, W], each made whenever it is asked for: only pixels are kept.

    Channels lie last in memory, in which order CPUs compute convolutions faster.

    Attributes:
        images: uint8 or uint16 [N, H, W, C].
        splits: say how pixels are normalised.
        size: images of a batch; the last one may have fewer.
    """

    images: Array
    splits: Splits
    input_shape: Shape
    size: int

    def __len__(self) -> int:
        return len(range(0, len(self.images), self.size))

    @overload
    def __getitem__(self, index: int) -> "torch.Tensor": ...
    @overload
    def __getitem__(self, index: slice) -> "list[torch.Tensor]": ...

    def __getitem__(self, index: int | slice) -> "torch.Tensor | list[torch.Tensor]":
        import torch

        if isinstance(index, slice):
            return [self[each] for each in range(len(self))[index]]
        start = range(0, len(self.images), self.size)[index]
        pixels = self.images[start : start + self.size]
        (batch,) = preprocessed(
            pixels, self.splits, input_shape=self.input_shape, batch=self.size, memory_format=torch.channels_last
        )
        return batch
