"""The base class of data sets of pictures of any size and kind, wherever these are and whoever says what is on them."""

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from bitsweep.config.configurable import NOT_IN_KEYS, Count, Place, configurable
from bitsweep.config.dataset import Dataset, Part
from bitsweep.data.calibration_files import find_unlabelled
from bitsweep.data.class_names import read_classes
from bitsweep.data.listing import Arranged, Listing, arrange, as_raw_data
from bitsweep.data.unlabelled import Unlabelled
from bitsweep.results import RawData
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
        calibration: folder or list of images without labels, or one image, to choose ranges on; empty for training
            images.
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
        size = self.store_size, self.store_size
        return as_raw_data(listing, arranged, calibration, size=size, crop=self.crop)

    def _read(self) -> tuple[Listing, Arranged, Unlabelled | None]:
        classes = read_classes(self.classes)
        listing = self.listed(classes)
        calibration = find_unlabelled(self.calibration) if self.calibration else None
        arranged = arrange(
            listing, calibration, classes=classes, test_share=self.test_share, val_share=self.val_share,
            seed=self.split_seed, leaks=self.leaks,
        )  # fmt: skip
        return listing, arranged, calibration
