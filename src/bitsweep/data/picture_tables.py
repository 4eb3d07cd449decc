"""Tables of Parquet and Arrow with a picture in every row, as bytes or as the path of a file.

They are read a part at a time, so that memory does not grow with the number of pictures.
"""

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np

from bitsweep.data.image_files import Picture
from bitsweep.errors import DataError, first_line
from bitsweep.text import some

#: Of a file, in characters: text that is longer is perhaps no path, but a picture in base 64.
_LONGEST_NAME = 255

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of one or several files, some of them read at a time.

    Attributes:
        files: that they are in.
        features: of every column that says more than its type: what the ``datasets`` package wrote of it.
        columns: names of all.
        parts: how many rows there are in each part, and what reads some of its columns.
    """

    files: Sequence[Path]
    features: Mapping[str, Any]
    columns: Sequence[str]
    parts: Sequence[tuple[int, Callable[[list[str]], "pyarrow.Table"]]]

    def __len__(self) -> int:
        return sum(rows for rows, _ in self.parts)

    def values(self, column: str) -> list[Any]:
        """All values of a column."""
        return [value for _, read in self.parts for value in read([column]).column(0).to_pylist()]

    def pictures(self, column: str, folder: Path) -> Callable[[Sequence[int]], Sequence[Picture]]:
        """What takes the pictures of a column by the numbers of their rows.

        Args:
            folder: that paths count from.
        """
        starts = np.cumsum([0, *(rows for rows, _ in self.parts)])

        @functools.lru_cache(maxsize=2)
        def read(part: int) -> Any:
            return self.parts[part][1]([column]).column(0)

        def take(numbers: Sequence[int]) -> Sequence[Picture]:
            parts = (np.searchsorted(starts, numbers, side="right") - 1).tolist()
            return [
                _picture(read(part)[number - int(starts[part])].as_py(), folder)
                for number, part in zip(numbers, parts, strict=True)
            ]

        return take


def read_parquet(files: Sequence[Path]) -> Table:
    """Files of Parquet, read by row groups.

    Raises:
        DataError: one is damaged, or they have unlike columns.
    """
    import pyarrow.parquet

    parts: list[tuple[int, Callable[[list[str]], Any]]] = []
    schemas = []
    for file in files:
        with _read_as("Parquet", file):
            opened = pyarrow.parquet.ParquetFile(file, memory_map=True)
        schemas.append(opened.schema_arrow)
        for group in range(opened.num_row_groups):
            rows = opened.metadata.row_group(group).num_rows
            parts.append((rows, functools.partial(opened.read_row_group, group)))
    return _table(files, schemas, parts)


def read_arrow(files: Sequence[Path]) -> Table:
    """Files of Arrow, as ``save_to_disk`` of the ``datasets`` package writes them, mapped into memory.

    Raises:
        DataError: one is damaged, or they have unlike columns.
    """
    import pyarrow

    parts: list[tuple[int, Callable[[list[str]], Any]]] = []
    schemas = []
    for file in files:
        with _read_as("Arrow", file):
            table = pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))).read_all()
        schemas.append(table.schema)
        parts.append((len(table), table.select))
    return _table(files, schemas, parts)


@contextlib.contextmanager
def _read_as(kind: str, file: Path) -> Iterator[None]:
    """Name a file that is not what it should be."""
    import pyarrow

    try:
        yield
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{file.name} cannot be read as {kind} ({first_line(error)})") from error


def table_of(file: Path, columns: Mapping[str, Sequence[Any]]) -> Table:
    """Columns of a file that was read into memory.

    Raises:
        DataError: there are no rows, or a column holds values of several kinds.
    """
    import pyarrow

    try:
        table = pyarrow.table(dict(columns))
    except pyarrow.ArrowException as error:
        raise DataError(f"{file.name}: a column holds values of several kinds ({first_line(error)})") from error
    return _table([file], [table.schema], [(len(table), table.select)])


def joined(tables: Sequence[Table]) -> Table:
    """Tables with the same columns as one, in their order.

    Raises:
        DataError: they have unlike columns.
    """
    for table in tables:
        if table.columns != tables[0].columns:
            one, other = (f"{each.files[0].name} {some(each.columns, 9)}" for each in (tables[0], table))
            raise DataError(f"files have unlike columns: {one}, and {other}")
    return Table(
        files=[file for table in tables for file in table.files],
        features=tables[0].features,
        columns=tables[0].columns,
        parts=[part for table in tables for part in table.parts],
    )


def _picture(value: Any, folder: Path) -> Picture:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value.strip():
        if len(value) > _LONGEST_NAME and not os.path.exists(folder / value):  # noqa: PTH110 - Path raises here
            raise DataError(
                f"a row has {len(value):,} characters for its picture ({value[:20]}...), and there is no such file; "
                "pictures themselves are bytes, in Parquet"
            )
        return _place(value.strip(), folder)
    raise DataError(f"a row has no picture, but {str(value)[:40]}; pictures are bytes, or paths of files")


def _place(name: str, folder: Path) -> Path:
    """Where the file of a path lies, which may have been written on Windows."""
    place = folder / Path(name).expanduser()
    if "\\" in name and not place.exists():
        place = folder / PureWindowsPath(name).as_posix()
    return place


def _table(files: Sequence[Path], schemas: Sequence[Any], parts: Any) -> Table:
    columns = list(schemas[0].names)
    for file, schema in zip(files, schemas, strict=True):
        if list(schema.names) != columns:
            raise DataError(f"{file.name} has the columns {some(schema.names, 9)}, {files[0].name} {some(columns, 9)}")
    written = json.loads((schemas[0].metadata or {}).get(b"huggingface", b"{}"))
    features = written.get("info", {}).get("features", {})
    if not sum(rows for rows, _ in parts):
        raise DataError(f"{files[0].name} has no rows")
    return Table(files=files, features=features, columns=columns, parts=parts)
