"""Image files in one folder a class: the form in which most data sets of photographs come."""

from collections.abc import Sequence
from pathlib import Path
from typing import final

from bitsweep.config.configurable import configurable
from bitsweep.data.image_files import files_in
from bitsweep.data.image_tree import content_digests, find_classes, find_parts
from bitsweep.data.listing import Listing
from bitsweep.data.photographs import Photographs
from bitsweep.errors import DataError


@final
@configurable
class ImageFolder(Photographs):
    """Pictures in ``train/CLASS/*`` and ``test/CLASS/*``, in ``test/CLASS/*`` alone, or in ``CLASS/*`` to be split.

    Attributes:
        train_folder, test_folder: names of the two folders in the root; empty to find them by their usual names.
    """

    train_folder: str = ""
    test_folder: str = ""

    def listed(self, classes: Sequence[str]) -> Listing:
        """The files, each of the class that its folder is called by."""
        root = Path(self.root).expanduser()
        if not self.root or not root.is_dir():
            is_what = "is no folder" if root.exists() else "no such folder"
            wrong = f"dataset.root={self.root}: {is_what}" if self.root else "dataset.root: is not set"
            raise DataError(
                f"{wrong}; set it to the folder of the images, which are there as train/CLASS/IMAGE and "
                "test/CLASS/IMAGE, as test/CLASS/IMAGE alone, or as CLASS/IMAGE"
            )
        try:
            parts = find_parts(root, train=self.train_folder, test=self.test_folder)
            places = [each for each in zip(parts, (False, True), strict=False) if each[0]] or [("", False)]
            files = [
                (name, kind, tested)
                for part, tested in places
                for kind, names in find_classes(root, part, single=bool(classes)).items()
                for name in names
            ]
            names = [name for name, *_ in files]
            contents = content_digests(root, names)
        except OSError as error:
            raise DataError(f"dataset.root={self.root}: cannot be read ({error}); repair it") from error
        return Listing(
            names=names,
            contents=contents,
            labels=[kind for _, kind, _ in files],
            tested=[tested for *_, tested in files] if parts else None,
            take=files_in(root, names),
            key=f"dataset.root={self.root}",
            parts=parts or ("", ""),
        )
