"""The base class of data sets of pictures of any size and kind, wherever these are and whoever says what is on them."""

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from bitsweep.config.configurable import NOT_IN_KEYS, Count, Place, configurable
from bitsweep.config.dataset import Dataset, Part
from bitsweep.data.class_names import read_classes
from bitsweep.data.image_files import ImageFiles, blocks_of, largest_of
from bitsweep.data.listing import Arranged, Listing, arrange, refuse_leaks
from bitsweep.data.pixels import DEEPEST, StoredForm, white_of
from bitsweep.data.unlabelled import PictureFolder, find_unlabelled
from bitsweep.errors import DataError
from bitsweep.results import Array, RawData, RawSplit
from bitsweep.runtime.environment import version_of


@configurable
class Photographs(Dataset):
    """Pictures that somebody has listed with their classes.

    They are stored as squares of one size, see `bitsweep.data.pixels.read_picture`. In 16 bits white is the largest
    value of 8, 10, 12, 14 or 16 bits, as many as the training images use.

    Attributes:
        root: where they are.
        classes: names in the order of the outputs of given weights, or a file with them, see
            `bitsweep.data.class_names.read_classes`; there need not be images of all. Empty: those that there are.
        calibration: folder of images without labels, or one image, to choose ranges on; empty for training images.
        test_share: part of each class held out for testing where nothing says which are; equal pictures stay together.
            1: all are for testing, and given weights can be tried on them.
        store_size: height and width of the stored squares, in pixels.
        crop: side of the square that is kept of an image, relative to its short side.
        leaks: whether to refuse or to keep test images that are, byte for byte, training or calibration images too.
    """

    root: Place = ""
    classes: Annotated[str | tuple[str, ...], NOT_IN_KEYS] = ()
    calibration: Place = ""
    test_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    store_size: Count = 224
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    leaks: Literal["refuse", "keep"] = "refuse"

    @abstractmethod
    def listed(self, classes: Sequence[str]) -> Listing:
        """What the owner says of the pictures.

        Args:
            classes: that may occur, where they are given.

        Raises:
            DataError: what they are in cannot be read.
        """

    def source(self) -> str:
        """SHA-256 of names, contents and labels, the same wherever the root is; and the version of the decoder."""
        listing, arranged, calibration = self._read()
        digest = hashlib.sha256(repr(arranged.classes).encode())
        for name, content, label in zip(listing.names, listing.contents, arranged.labels_N.tolist(), strict=True):
            digest.update(name.encode(errors="surrogateescape") + b"\0" + content + str(label).encode())
        digest.update(arranged.test_N.tobytes() + (calibration.source().encode() if calibration else b""))
        return f"{digest.hexdigest()} pillow {version_of('pillow')}"

    def lacks(self) -> Mapping[Part, str]:
        """Training images where there are none, or too few; validation images where nothing is left for them."""
        listing, arranged, calibration = self._read()
        reason = f"{listing.key}: {arranged.untrainable}"
        lacking: dict[Part, str] = {"training": reason} if arranged.untrainable else {}
        return lacking | ({"validation": reason} if arranged.test_N.all() and calibration else {})

    def decode(self) -> RawData:
        """The pictures, which are decoded when they are asked for."""
        listing, arranged, calibration = self._read()
        trained, tested = map(np.flatnonzero, (~arranged.test_N, arranged.test_N))
        form = self._form(listing, (trained if len(trained) else tested).tolist())
        train, test = (
            RawSplit(images=self._images(listing, chosen_N, form), labels=arranged.labels_N[chosen_N])
            for chosen_N in (trained, tested)
        )
        in_files = all(isinstance(picture, Path) for picture in listing.take([0]))
        return RawData(
            train=train,
            test=test,
            classes=arranged.classes,
            calibration=calibration.images(form) if calibration else None,
            test_files=tuple(map(Path, listing.take(tested.tolist()))) if in_files else (),  # type: ignore[arg-type]
            crop=form.crop,
            white=form.white,
        )

    def _read(self) -> tuple[Listing, Arranged, PictureFolder | None]:
        classes = read_classes(self.classes)
        listing = self.listed(classes)
        calibration = find_unlabelled(self.calibration) if self.calibration else None
        try:
            arranged = arrange(
                listing, classes=classes, test_share=self.test_share, seed=self.split_seed, leaks=self.leaks
            )
            if calibration:
                tested = {listing.contents[k]: listing.names[k] for k in np.flatnonzero(arranged.test_N).tolist()}
                both = zip(calibration.names, calibration.contents, strict=True)
                found = [f"{tested[content]} = {name}" for name, content in both if content in tested]
                refuse_leaks(found, int(arranged.test_N.sum()), kind="calibration", leaks=self.leaks)
        except DataError as error:
            raise DataError(f"{listing.key}: {error}") from error
        return listing, arranged, calibration

    def _images(self, listing: Listing, chosen_N: Array, form: StoredForm) -> ImageFiles:
        numbers = chosen_N.tolist()
        return ImageFiles(
            names=[listing.names[number] for number in numbers],
            take=lambda chosen: listing.take([numbers[each] for each in chosen]),
            form=form,
            place=listing.key,
        )

    def _form(self, listing: Listing, numbers: Sequence[int]) -> StoredForm:
        """The form that pictures are stored in, with the white of those with these numbers."""
        blocks = (listing.take([numbers[each] for each in block]) for block in blocks_of(len(numbers)))
        largest, coloured = largest_of(blocks)
        if coloured and white_of(coloured) != DEEPEST:
            raise DataError(
                f"{listing.key}: the coloured 16-bit training images use {white_of(coloured).bit_length()} "
                f"bits only, of which {white_of(coloured).bit_length() - 8} would be read: save them in 8 bits, or let "
                "them use all 16"
            )
        form = StoredForm(height=self.store_size, width=self.store_size, crop=self.crop, white=white_of(largest))
        if form.white != DEEPEST:
            print(f"the 16-bit training images reach {largest}: {form.white} is white", flush=True)
        return form
