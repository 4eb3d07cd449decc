"""A list of image files with their classes: CSV, JSON Lines or Parquet."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from bitsweep.config.configurable import Place, configurable
from bitsweep.data.class_names import whole_numbers
from bitsweep.data.listing import Listing, named
from bitsweep.data.photographs import Photographs
from bitsweep.data.picture_tables import Table, read_parquet, table_of
from bitsweep.data.table_listing import find_columns, labels_of, listing_of
from bitsweep.data.tables import read_table
from bitsweep.errors import DataError, first_line

_JSON_LINES = (".jsonl", ".ndjson")


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
            table, of_text = _read(file, key)
            image, label, split = find_columns(
                table, image=self.image_column, label=self.label_column, split=self.split_column
            )
            labels, names = labels_of(table, label)
            numbered = whole_numbers([str(name) for name in labels]) if of_text else labels
            parts = table.values(split) if split else None
            return listing_of(table, folder=folder, image=image, labels=numbered, classes=names, parts=parts, key=key)


def _read(file: Path, key: str) -> tuple[Table, bool]:
    """The table, and whether all of its cells are text."""
    with file.open("rb") as stream:
        head = stream.read(4)
    if head == b"PAR1":
        return read_parquet([file]), False
    if file.suffix.lower() in _JSON_LINES:
        return table_of(file, _json_lines(file)), False
    messages: list[str] = []
    frame = read_table(file, key=key, messages=messages)
    for line in messages:
        print(line, flush=True)
    return table_of(file, {name: frame[name].tolist() for name in frame.columns}), True


def _json_lines(file: Path) -> dict[str, list[Any]]:
    """The values in all lines, by their names; None where a line lacks one."""
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file.name} cannot be read as JSON Lines: line {number} ({first_line(error)})") from error
        if not isinstance(row, dict):
            raise DataError(f"{file.name} cannot be read as JSON Lines: line {number} is no object of names and values")
        rows.append(row)
    if not rows:
        raise DataError(f"{file.name} has no rows")
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
