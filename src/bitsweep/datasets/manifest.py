"""A list of image files with their classes: CSV, JSON Lines or Parquet."""

from collections.abc import Sequence
from pathlib import Path
from typing import final

from bitsweep.config.configurable import Place, configurable
from bitsweep.data.class_names import whole_numbers
from bitsweep.data.listing import Listing, named
from bitsweep.data.photographs import Photographs
from bitsweep.data.picture_lists import read_list
from bitsweep.data.table_listing import find_columns, labels_of, listing_of
from bitsweep.errors import DataError


@final
@configurable
class Manifest(Photographs):
    """Pictures in the rows of a table: paths of files, or, in Parquet, what is in them.

    Attributes:
        file: the table. Paths count from its folder, or from ``root`` where that is given.
        image_column, label_column, split_column: of the path or the bytes, of the class (a name or a number), and of
            the part (``train``, ``test`` or ``validation``), which need not be there; empty to find them by their usual
            names.
    """

    file: Place = ""
    image_column: str = ""
    label_column: str = ""
    split_column: str = ""

    def listed(self, classes: Sequence[str]) -> Listing:
        """The pictures by the rows of the table."""
        key, file = f"dataset.file={self.file}", Path(self.file).expanduser()
        if not self.file or not file.is_file():
            raise DataError(f"{key}: no such file; name a CSV, JSONL or Parquet file with a row for every image")
        folder = Path(self.root).expanduser() if self.root else file.parent
        with named(key):
            table, of_text = read_list(file, key)
            image, label, split = find_columns(
                table, image=self.image_column, label=self.label_column, split=self.split_column
            )
            labels, names = labels_of(table, label)
            numbered = whole_numbers([str(name) for name in labels]) if of_text else labels
            parts = table.values(split) if split else None
            return listing_of(table, folder=folder, image=image, labels=numbered, classes=names, parts=parts, key=key)
