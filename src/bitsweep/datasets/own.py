"""A data set of the user's own: what a function in a file, or in an installed package, makes."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, final

from pydantic import Field

from bitsweep.config.configurable import NOT_IN_KEYS, Place, configurable
from bitsweep.config.dataset import Dataset
from bitsweep.config.factory import Factory
from bitsweep.data.calibration_files import find_unlabelled
from bitsweep.data.class_names import read_classes
from bitsweep.data.given_images import Items, look_through
from bitsweep.data.listing import Listing, arrange, as_raw_data
from bitsweep.data.unlabelled import Unlabelled
from bitsweep.errors import DataError
from bitsweep.results import RawData
from bitsweep.runtime.environment import version_of
from bitsweep.runtime.fingerprint import digest

_PARTS = ("train", "test")


@final
@configurable
class OwnDataset(Dataset):
    """Items of torch Datasets, each an image and its label: ``train`` and ``test``, or one that is split.

    An image is a picture of Pillow, an array [H, W, C] or a tensor [C, H, W], see
    `bitsweep.data.given_images.as_picture`. Every item is asked for twice, for its label and for its pixels, so that no
    more than a few are in memory. The code of the factory is part of every key, with all that it uses from the user's
    files; what it reads is not.

    Attributes:
        factory: ``data.py:make``, a file, from the working directory or absolute, and a name in it; or
            ``package.module:name``. It gives a dictionary with ``train`` and ``test``, both in this order, or one
            Dataset.
        arguments: what it is called with, by keyword.
        version: of what it reads; to be changed together with that.
        classes, calibration, test_share, crop, leaks: see `bitsweep.data.photographs.Photographs`.
        store_size: height and width of the stored squares, in pixels; 0 for those of the images where all have the
            same, else 224.
    """

    factory: Place = ""
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    version: str = ""
    classes: Annotated[str | tuple[str, ...], NOT_IN_KEYS] = ()
    calibration: Place = ""
    test_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    store_size: Annotated[int, Field(ge=0)] = 0
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    leaks: Literal["refuse", "keep"] = "refuse"

    def source(self) -> str:
        """The code of the factory, the names of the classes, and the images for calibration."""
        given, factory = self._calibration(), self._factory
        code = factory.code()
        factory.check_arguments("dataset.arguments", self.arguments)
        about = [read_classes(self.classes), given.source() if given else "", version_of("pillow")]
        return digest(code, about)

    def decode(self) -> RawData:
        """The images, which are asked for again when they are wanted."""
        key, parts = f"dataset.factory={self.factory}", self._parts()
        try:
            items = [look_through(given, what=name) for name, given in parts.items()]
        except DataError as error:
            raise DataError(f"{key}: {error}") from error
        calibration, sizes = self._calibration(), frozenset[tuple[int, int]]().union(*(each.sizes for each in items))
        listing = _listing(dict(zip(parts, items, strict=True)), key)
        arranged = arrange(
            listing, calibration, classes=read_classes(self.classes), test_share=self.test_share,
            val_share=self.val_share, seed=self.split_seed, leaks=self.leaks,
        )  # fmt: skip
        side = self.store_size or 224
        size = next(iter(sizes)) if len(sizes) == 1 and not self.store_size else (side, side)
        return as_raw_data(listing, arranged, calibration, size=size, crop=self.crop)

    @property
    def _factory(self) -> Factory:
        return Factory("dataset.factory", self.factory)

    def _calibration(self) -> Unlabelled | None:
        return find_unlabelled(self.calibration) if self.calibration else None

    def _parts(self) -> dict[str, Any]:
        """Data sets by what they are for; ``all`` for one that is to be split."""
        made = self._factory.make(self.arguments)
        if isinstance(made, tuple) and len(made) == len(_PARTS):
            return dict(zip(_PARTS, made, strict=True))
        if not isinstance(made, Mapping):
            return {"all": made}
        if not made or not set(made) <= set(_PARTS) or "test" not in made:
            raise DataError(
                f"dataset.factory={self.factory}: gives {', '.join(map(str, made)) or 'nothing'}; it must give train "
                "and test, test alone, or one Dataset"
            )
        return {name: made[name] for name in _PARTS if name in made}


def _listing(parts: Mapping[str, Items], key: str) -> Listing:
    """The items of all parts, one after the other."""
    places = [(items, number) for items in parts.values() for number in range(len(items))]
    if not places:
        raise DataError(f"{key}: gives no images")
    return Listing(
        names=[f"{part} {number}" for part, items in parts.items() for number in range(len(items))],
        contents=[content for items in parts.values() for content in items.contents],
        labels=[label for items in parts.values() for label in items.labels],
        tested=None if "all" in parts else [part == "test" for part, items in parts.items() for _ in range(len(items))],
        take=lambda numbers: [picture for k in numbers for picture in places[k][0].take([places[k][1]])],
        classes=next(iter(parts.values())).classes,
        key=key,
    )
