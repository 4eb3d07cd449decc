"""From a table of pictures to a listing: which columns hold what, and which rows are for testing."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bitsweep.data.image_files import Picture, blocks_of
from bitsweep.data.image_tree import content_digests, file_kind, kept_digests
from bitsweep.data.listing import Listing
from bitsweep.data.picture_tables import Table
from bitsweep.errors import DataError
from bitsweep.text import counted, say, some

#: Usual names of columns, in lower case.
_IMAGE = (
    "image",
    "img",
    "pixel_values",
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "image_path",
)
_LABEL = ("label", "labels", "class", "target", "category", "class_name", "label_name", "fine_label", "y")
_SPLIT = ("split", "part", "set", "subset")
#: What the ``datasets`` package calls the type of a column, empty where it has none, and the column's usual names.
_USUAL = {"image": ("Image", _IMAGE), "label": ("ClassLabel", _LABEL), "split": ("", _SPLIT)}
#: Of a row's part, what it is for: training or testing.
_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation", "dev", "eval")
#: What may stand between several labels, and a list as Python or JSON writes it.
_BETWEEN = re.compile(r"[,;|]")
_BRACKETS = re.compile(r"[\[({].*,.*[\])}]", re.DOTALL)


def find_columns(table: Table, *, image: str, label: str, split: str) -> tuple[str, str, str]:
    """Names of the columns of images, labels and parts; the last is empty where there is none.

    Args:
        image, label, split: those that were given; empty to find them by what they are, or by their usual names.

    Raises:
        DataError: one is missing.
    """
    chosen = []
    for key, given in (("image", image), ("label", label), ("split", split)):
        found = [given] if given else columns_for(key, table)
        if (given and given not in table.columns) or (not found and key != "split"):
            what = f"dataset.{key}_column={given}: no such column" if given else f"which column is the {key}"
            raise DataError(f"{what}; choose dataset.{key}_column from {some(table.columns, 9)}")
        if len(found) > 1 and _type_of(table, found[1]) == _USUAL[key][0]:
            say(f"{key}s are those of {found[0]}; dataset.{key}_column may be {found[1]}")
        chosen.append(found[0] if found else "")
    return chosen[0], chosen[1], chosen[2]


def columns_for(key: str, table: Table) -> list[str]:
    """The columns that may hold images, labels or parts (``image``, ``label``, ``split``), the likeliest first."""
    kind, usual = _USUAL[key]
    of_type = [name for name in table.columns if kind and _type_of(table, name) == kind]
    named = [name for each in usual for name in table.columns if name.strip().lower() == each]
    return [*dict.fromkeys([*of_type, *named])]


def labels_of(table: Table, column: str) -> tuple[list[str | int], Sequence[str]]:
    """The labels, and the names of the classes by their numbers where the table has them.

    Raises:
        DataError: a row has no label, or several.
    """
    values = table.values(column)
    names = tuple(table.features[column].get("names", ())) if _type_of(table, column) == "ClassLabel" else ()
    labels: list[str | int] = []
    for number, value in enumerate(values):
        if isinstance(value, list | tuple | dict | set):
            raise _several(column, number, value)
        whole = isinstance(value, float) and value.is_integer()
        label = value.strip() if isinstance(value, str) else int(value) if whole or isinstance(value, int) else value
        if label is None or label == "" or (names and label == -1) or label != label:
            raise DataError(f"row {number} has no {column}; leave out rows without a label")
        if not isinstance(label, str | int):
            raise DataError(f"{column} of row {number} is {str(value)[:40]}; labels are names or whole numbers")
        labels.append(label)
    if names and any(isinstance(label, str) or label >= len(names) for label in labels):
        raise DataError(f"{column} has labels beyond its {counted(len(names), 'name')}")
    _check_text(column, [str(label) for label in labels])
    return labels, names


def _several(column: str, number: int, value: Any) -> DataError:
    return DataError(
        f"{column} of row {number} is {str(value)[:40]}: images of several classes are not classified here; give one "
        "label an image"
    )


def _check_text(column: str, labels: Sequence[str]) -> None:
    """Refuse lists of labels that are written as text; tell of a name that may be one.

    Raises:
        DataError: a label is a list in brackets, or consists of other labels, as in ``cat|dog`` beside both.
    """
    first = {label: number for number, label in reversed(list(enumerate(labels)))}
    for label, number in sorted(first.items(), key=lambda each: each[1]):
        pieces = [piece.strip() for piece in _BETWEEN.split(label)]
        known = [piece for piece in pieces if piece in first]
        if _BRACKETS.fullmatch(label) or (len(pieces) > 1 and len(known) == len(pieces)):
            raise _several(column, number, label)
        if len(pieces) > 1 and known:
            say(f"warning: {label[:40]!a} is a class beside {known[0]!a}: is it several labels?")


def tested_rows(values: Sequence[Any]) -> tuple[list[int], list[bool]]:
    """Numbers of the rows that count, and whether each is for testing.

    Where some are for testing and others for validation, the latter are left out: validation images are held out from
    training.

    Raises:
        DataError: there is neither a part for training nor one for testing, or a name that is neither.
    """
    parts = [str(value).strip().lower() for value in values]
    unknown = sorted({part for part in parts if part not in (*_TRAIN, *_TEST)})
    if unknown:
        raise DataError(f"parts are {some(unknown)}; they must be train and test (or validation)")
    found = [part for part in _TEST if part in parts]
    if not found:
        raise DataError("all rows are for training; call the part of others test, or leave the column out")
    tested = {part for part in parts if part in _TEST[:2]} or {found[0]}
    if beside := sorted(set(parts) - tested - {*_TRAIN}):
        say(f"left out: {some(beside)}; validation images are held out from training")
    kept = [number for number, part in enumerate(parts) if part in tested or part in _TRAIN]
    return kept, [parts[number] in tested for number in kept]


def listing_of(
    table: Table,
    *,
    folder: Path,
    image: str,
    labels: Sequence[str | int],
    classes: Sequence[str],
    parts: Sequence[Any] | None,
    key: str,
) -> Listing:
    """The pictures of a table.

    Args:
        folder: that paths count from.
        image: their column.
        labels, classes: see `labels_of`.
        parts: of every row, if they are divided.
        key: of the setting that names the table, with its value, for errors.

    Raises:
        DataError: files are missing, or parts are none.
        OSError: files cannot be read.
    """
    rows, tested = tested_rows(parts) if parts is not None else (range(len(table)), None)
    names, contents, take = pictures_of(table, folder=folder, image=image, rows=rows)
    return Listing(
        names=names,
        contents=contents,
        labels=[labels[row] for row in rows],
        tested=tested,
        take=take,
        classes=classes,
        key=key,
    )


def pictures_of(
    table: Table, *, folder: Path, image: str, rows: Sequence[int]
) -> tuple[list[str], list[bytes], Callable[[Sequence[int]], Sequence[Picture]]]:
    """Names of the pictures in some rows, a digest of each, and what takes them by their numbers.

    Raises:
        DataError: files are missing.
        OSError: files cannot be read.
    """
    take = table.pictures(image, folder)

    def chosen(numbers: Sequence[int]) -> Sequence[Picture]:
        return take([rows[number] for number in numbers])

    if isinstance(chosen([0])[0], bytes):
        contents = kept_digests(table.files, len(table), lambda: _digests(take, len(table)))
        return [str(row) for row in rows], [contents[row] for row in rows], chosen
    paths = [picture for numbers in blocks_of(len(rows)) for picture in chosen(numbers) if isinstance(picture, Path)]
    _require_files(paths)
    names = [str(path.relative_to(folder) if path.is_relative_to(folder) else path) for path in paths]
    return names, content_digests(folder, names), chosen


def _type_of(table: Table, column: str) -> str:
    """What the ``datasets`` package calls the type of a column; empty where it did not write the table."""
    about = table.features.get(column)
    return str(about.get("_type", "")) if isinstance(about, Mapping) else ""


def _digests(take: Callable[[Sequence[int]], Sequence[Picture]], count: int) -> Iterator[bytes]:
    for numbers in blocks_of(count):
        for picture in take(numbers):
            content = picture.read_bytes() if isinstance(picture, Path) else picture
            assert isinstance(content, bytes)
            yield hashlib.sha256(content).digest()


def _require_files(paths: Sequence[Path]) -> None:
    if missing := [str(path) for path in paths if not path.exists()]:
        raise DataError(
            f"{len(missing)} of {len(paths)} files are missing: {some(missing)}; put them there or correct the paths, "
            "which count from dataset.root, or, without it, from the folder of the list"
        )
    if odd := [str(path) for path in paths if path.is_dir() or file_kind(path)]:
        raise DataError(f"{some(odd)} {'are' if odd[1:] else 'is'} no file; correct the paths")
