"""Tables in files as people have them, read as text: every cell is what stands there, and nothing is guessed yet."""

import bz2
import csv
import gzip
import lzma
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from bitsweep.errors import DataError, first_line
from bitsweep.text import counted

if TYPE_CHECKING:
    import pandas

#: Endings of the names of tables; those of text may be followed by one of a compressed file.
PARQUET = (".parquet", ".pq")
TEXT = (".csv", ".tsv", ".txt")
COMPRESSED = (".gz", ".bz2", ".xz", ".zip")
#: What columns without a name are called, with their number.
UNNAMED = "Unnamed: "
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"),
)  # fmt: skip
_PACKED: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ": lzma.decompress,
}  # fmt: skip
_NO_TEXT = {
    b"PK\x03\x04": "an Excel workbook or an archive", b"\xd0\xcf\x11\xe0": "an Excel workbook", b"%PDF": "a PDF file",
    b"\x89HDF": "an HDF5 file", b"SQLite format": "a database", b"ARROW1": "an Arrow file",
    b"<!doctype": "a web page", b"<html": "a web page", b"[{": "JSON", b'{"': "JSON",
    b"version https://git-lfs": "a pointer of Git LFS (run: git lfs pull)",
}  # fmt: skip
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_SAMPLE_LINES = 50
#: What Excel writes into a line of its own to say how columns are separated.
_SAYS_SEPARATOR = re.compile(r"\s*sep=(.)\s*\n")
_QUOTED = r'^"(.*)"$'
#: Beside numbers without a comma such a comma separates thousands.
_THOUSANDS = re.compile(r"\s*[+-]?[1-9]\d{0,2},\d{3}\s*")
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+(?:[eE][+-]?\d+)?\s*")


def read_table(file: Path, *, key: str, messages: list[str]) -> "pandas.DataFrame":
    """The rows of a table of text (UTF-8, UTF-16 or Latin-1; commas, semicolons, tabs or bars) or of a Parquet file.

    Args:
        key: of the setting that names the table, with its value, for errors.
        messages: gets a line for everything that was not as in a plain CSV file.

    Returns:
        Cells as text without spaces around them; those that are missing are empty. Every column has a name of its own.

    Raises:
        DataError: it cannot be read.
    """
    parquet = file.suffix.lower() in PARQUET
    try:
        with file.open("rb") as stream:
            parquet |= stream.read(4) == b"PAR1"
        frame = _read_parquet(file) if parquet else _read_text(file, messages)
    except DataError as error:
        raise DataError(f"{key}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # reading something damaged can raise anything
        reason = first_line(error)
        hint = "" if parquet else "; its first line must name the columns, and every other have as many cells"
        raise DataError(
            f"{key}: {file.name} cannot be read as {'Parquet' if parquet else 'CSV'} ({reason}){hint}"
        ) from error
    frame = frame.rename(columns={name: _one_line(name) for name in frame.columns})
    if odd := [name for name in frame.columns if not name.isprintable()]:
        raise DataError(f"{key}: {file.name} has a column {odd[0][:20]!a}, which is no text: is it a table?")
    if not len(frame):
        raise DataError(f"{key}: {file.name} has no rows")
    spaced = [name for name in frame.columns if (frame[name] != frame[name].str.strip()).any()]
    if spaced:
        messages.append(f"{file.name}: spaces around cells are taken off ({', '.join(spaced[:3])})")
    return _without_idle_rows(
        frame.assign(**{name: frame[name].str.strip() for name in spaced}), file, key=key, messages=messages
    )


def _without_idle_rows(frame: "pandas.DataFrame", file: Path, *, key: str, messages: list[str]) -> "pandas.DataFrame":
    """The same without rows that hold nothing, as spreadsheets write them, or the header again, as joined files do."""
    rows = {"empty": (frame == "").all(axis=1), "the header again": (frame == list(frame.columns)).all(axis=1)}
    for what, idle in rows.items():
        if idle.any():
            messages.append(f"{file.name}: {counted(int(idle.sum()), 'row')} left out: {what}")
    kept = frame[~(rows["empty"] | rows["the header again"])]
    if not len(kept):
        raise DataError(f"{key}: {file.name} has no rows")
    return kept.reset_index(drop=True)


def _one_line(name: object) -> str:
    return " ".join(str(name).split())


def _read_parquet(file: Path) -> "pandas.DataFrame":
    import pandas

    try:
        frame = pandas.read_parquet(file)
    except ImportError as error:
        raise DataError(f"{file.name}: pyarrow, which reads it, is not installed; run: pip install pyarrow") from error
    named = any(name is not None for name in frame.index.names)
    return frame.reset_index(drop=not named).apply(
        lambda column: column.astype(object).where(column.notna(), "").map(_written)
    )


def _written(cell: object) -> str:
    return cell.decode("utf-8", "backslashreplace") if isinstance(cell, bytes) else str(cell)


def _read_text(file: Path, messages: list[str]) -> "pandas.DataFrame":
    text, encoding = _decoded(_content(file), file.name)
    if encoding not in ("utf-8", "utf-8-sig"):
        messages.append(f"{file.name}: read as {encoding}")
    if said := _SAYS_SEPARATOR.match(text):
        text = text[said.end() :]
    separator = said[1] if said and said[1] in _SEPARATORS else _separator(text)
    frame = _parsed(text, separator)
    if separator != ",":
        messages.append(f"{file.name}: columns are separated by {_SEPARATORS[separator]}")
        frame = _with_decimal_points(frame, file.name, messages)
    if twice := [name for name, count in Counter(map(_one_line, frame.columns)).items() if count > 1]:
        raise DataError(f"{file.name} has several columns {twice[0]}; give each a name of its own")
    return _without_unnamed(frame, file.name, messages)


def _without_unnamed(frame: "pandas.DataFrame", name: str, messages: list[str]) -> "pandas.DataFrame":
    """The same without columns that have no name, where they are empty or count the rows, as pandas writes them."""
    unnamed = [column for column in frame.columns if column.startswith(UNNAMED)]
    empty = [column for column in unnamed if (frame[column] == "").all()]
    counting = [
        column
        for column in unnamed
        if column not in empty and frame[column].is_unique and frame[column].str.fullmatch(r"\s*\d+\s*").all()
    ]
    if counting:
        messages.append(f"{name}: a column without a name, which numbers the rows, is left out")
    if kept := [column for column in unnamed if column not in (*empty, *counting)]:
        messages.append(f"{name}: has a column without a name, here called {kept[0]}")
    return frame.drop(columns=[*empty, *counting])


def _content(file: Path) -> bytes:
    suffix = file.suffix.lower()
    if suffix == ".zip":
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if not name.startswith("__MACOSX") and not name.endswith("/")]
            if len(names) != 1:
                raise DataError(f"{file.name} holds {len(names)} files; it must hold one table")
            return archive.read(names[0])
    content = file.read_bytes()
    for mark, unpack in _PACKED.items():
        if content.startswith(mark):
            content = unpack(content)
    begin = content[:100].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for mark, what in _NO_TEXT.items():
        if content.startswith(mark) or begin.startswith(mark):
            raise DataError(f"{file.name} is {what}: save the table as CSV")
    return content


def _decoded(content: bytes, name: str) -> tuple[str, str]:
    """The text, and in what encoding it was."""
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content.decode(encoding), encoding
    head = content[:2000]
    for encoding, places in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
        if len(head) > 3 and places.count(0) > 0.8 * len(places):
            return content.decode(encoding), encoding
    try:
        return content.decode(), "utf-8"
    except UnicodeDecodeError:
        pass
    odd = [line for line in content.splitlines() if not line.isascii()]
    if any(_is_utf8(line) for line in odd):
        raise DataError(f"some lines of {name} are UTF-8, and others are not: save all of it as UTF-8")
    try:
        return content.decode("cp1252"), "Latin-1 (Windows-1252)"
    except UnicodeDecodeError:
        return content.decode("latin-1"), "Latin-1"


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _separator(text: str) -> str:
    """The one that cuts the first lines into the same number of cells, more than one, most often."""
    sample = text[: 1 << 16].splitlines()[:_SAMPLE_LINES]

    def fit(separator: str) -> tuple[int, int]:
        widths = [len(row) for row in csv.reader(sample, delimiter=separator) if row]
        width = widths[0] if widths else 0
        return (widths.count(width) if width > 1 else 0), width

    return max(_SEPARATORS, key=fit)


def _parsed(text: str, separator: str) -> "pandas.DataFrame":
    """The cells; where a quote is never closed, or swallows lines that are whole without it, quotes are no quotes."""
    import pandas

    def parse(quoting: int) -> "pandas.DataFrame":
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            cells = pandas.read_csv(
                StringIO(text), sep=separator, dtype=str, keep_default_na=False, header=None, quoting=quoting
            ).fillna("")
            names = [name or f"{UNNAMED}{number}" for number, name in enumerate(cells.iloc[0])]
            return cells[1:].reset_index(drop=True).set_axis(names, axis=1)

    try:
        frame = parse(csv.QUOTE_MINIMAL)
        if not frame.apply(lambda column: column.str.contains("\n", regex=False).any()).any():
            return frame
    except (ValueError, pandas.errors.ParserWarning) as error:
        frame, failure = None, error
    try:
        plain = parse(csv.QUOTE_NONE)
    except (ValueError, pandas.errors.ParserWarning):
        if frame is None:
            raise ValueError(str(failure).replace("Error tokenizing data. C error: ", "")) from failure
        return frame
    if frame is not None and not _is_even(text, separator):
        return frame  # a cell of several lines
    return plain.replace(_QUOTED, r"\1", regex=True).rename(columns=lambda name: re.sub(_QUOTED, r"\1", name))


def _is_even(text: str, separator: str) -> bool:
    """Whether all lines have as many cells, if quotes are no quotes."""
    rows = csv.reader(text.splitlines(), delimiter=separator, quoting=csv.QUOTE_NONE)
    return len({len(row) for row in rows if row}) == 1


def _with_decimal_points(frame: "pandas.DataFrame", name: str, messages: list[str]) -> "pandas.DataFrame":
    """The same, with the decimal commas of columns that are mostly numbers as points."""
    import pandas

    changed = {}
    for column in frame.columns:
        comma = frame[column].str.fullmatch(_DECIMAL_COMMA.pattern)
        number = pandas.to_numeric(frame[column], errors="coerce").notna()
        thousands = number.any() and frame[column][comma].str.fullmatch(_THOUSANDS.pattern).all()
        if comma.any() and not thousands and (comma | number).mean() > 0.5:
            changed[column] = frame[column].mask(comma, frame[column].str.replace(",", ".", regex=False))
    if changed:
        messages.append(f"{name}: decimal commas are read as points ({', '.join(list(changed)[:3])})")
    return frame.assign(**changed)
