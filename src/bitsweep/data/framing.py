"""The pictures of a data set as a network takes them, decoded when they are asked for."""

from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from bitsweep.data.pixels import Framing, StoredForm, frame_array
from bitsweep.results import Array, Images, RawData


@runtime_checkable
class Pictures(Protocol):
    """Images that are decoded into a form; a frozen dataclass."""

    @property
    def form(self) -> StoredForm: ...


@dataclass(frozen=True, kw_only=True)
class FramedImages:
    """Images of one size that are resized, padded and cropped when they are asked for.

    Attributes:
        images: as they are.
        framing: what becomes of them.
    """

    images: Images
    framing: Framing

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, H, W, C]."""
        count, height, width, channels = self.images.shape
        if self.framing.resize is not None:
            height, width = self.framing.height, self.framing.width
        return count, height, width, 1 if (channels, self.framing.channels) == (3, 1) else channels

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels."""
        return self.images.dtype

    def __getitem__(self, chosen_N: Array) -> Array:
        """The images with these numbers."""
        found = [frame_array(image, self.framing) for image in self.images[chosen_N]]
        return np.stack(found) if found else np.empty((0, *self.shape[1:]), self.dtype)


def framed(raw: RawData, framing: Framing | None, *, published: bool = False) -> RawData:
    """A data set as a network takes it.

    Pictures are decoded into the network's form instead of the data set's. Images of one size in arrays are resized,
    padded and cropped where the network says how, and otherwise stay as large as they are.

    Args:
        framing: None for the data set's own form.
        published: whether it is that of published weights, which are for photographs: images in arrays stay as they
            are.
    """
    if framing is None or (published and not isinstance(raw.test.images, Pictures)):
        return raw
    return replace(
        raw,
        train=replace(raw.train, images=_framed(raw.train.images, framing)),
        test=replace(raw.test, images=_framed(raw.test.images, framing)),
        calibration=None if raw.calibration is None else _framed(raw.calibration, framing),
        framing=framing,
    )


def _framed(images: Images, framing: Framing) -> Images:
    if isinstance(images, Pictures):
        form = StoredForm(**vars(framing), crop=images.form.crop, white=images.form.white)
        decoded: Images = replace(images, form=form)  # type: ignore[type-var]
        return decoded
    if framing.resize is None and framing.interpolation != "bilinear":
        framing = replace(framing, resize=(framing.height, framing.width))
    return FramedImages(images=images, framing=framing)
