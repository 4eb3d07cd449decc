"""The base class of data sets."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from bitsweep.config.configurable import Choice, Share, configurable

if TYPE_CHECKING:
    from bitsweep.results import RawData

#: Labelled images that what learns needs, besides those that accuracy is measured on.
Part = Literal["training", "validation"]


@configurable
class Dataset(Choice, ABC):
    """Labelled images.

    Attributes:
        val_share: part of the training images held out for choosing the checkpoint; of the test images, for choosing
            ranges, where there are no others.
        split_seed: seed of that choice; apart from the cell's seed, so that all seeds see the same images.
        pictures: whether its images are pictures, so that others can be classified as they are.
    """

    val_share: Share = 0.1
    split_seed: int = 0
    pictures: ClassVar[bool] = True

    @abstractmethod
    def source(self) -> str:
        """A fingerprint of the raw files without decoding them, the same before and after a download.

        Raises:
            DataError: the files are neither here nor to be downloaded.
        """

    def lacks(self) -> Mapping[Part, str]:
        """What of its images are none, or too few, and why; empty where networks can be trained on them.

        Raises:
            DataError: as for `source`.
        """
        return {}

    @abstractmethod
    def decode(self) -> "RawData":
        """Read (or first download) the raw files.

        Raises:
            DataError: a file is missing, unreadable or truncated.
        """
