"""Lists of pictures in files: CSV, JSON Lines or Parquet."""

import json
from pathlib import Path
from typing import Any

from bitsweep.data.picture_tables import Table, read_parquet, table_of
from bitsweep.data.tables import read_table
from bitsweep.errors import DataError, first_line
from bitsweep.text import say

_JSON_LINES = (".jsonl", ".ndjson")


def read_list(file: Path, key: str) -> tuple[Table, bool]:
    """The table in a file, and whether all of its cells are text.

    Args:
        key: of the setting that names the file, with its value, for errors.

    Raises:
        DataError: it is no table, or damaged.
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        head = stream.read(4)
    if head == b"PAR1":
        return read_parquet([file]), False
    if file.suffix.lower() in _JSON_LINES:
        return table_of(file, _json_lines(file)), False
    messages: list[str] = []
    frame = read_table(file, key=key, messages=messages)
    for line in messages:
        say(line)
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
