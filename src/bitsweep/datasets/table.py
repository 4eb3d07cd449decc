"""Rows of a table as small grey images, a pixel for each feature, for networks that see no pictures in them."""

import hashlib
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, final

import numpy as np
from pydantic import Field

from bitsweep.config.configurable import Place, Several, Share, configurable
from bitsweep.config.dataset import Dataset
from bitsweep.data.class_names import look_alikes
from bitsweep.data.columns import (
    Encoder,
    Kind,
    as_numbers,
    giveaways,
    kind_of,
    merged_classes,
    messages_about_cells,
    named_classes,
    number_spellings,
    present,
    some_of,
)  # fmt: skip
from bitsweep.data.tables import COMPRESSED, PARQUET, TEXT, UNNAMED, read_table
from bitsweep.errors import DataError
from bitsweep.results import Array, RawData, Split
from bitsweep.text import counted, say, some

if TYPE_CHECKING:
    import pandas

#: Endings of the names of tables that are found in a folder.
_ENDINGS = (*PARQUET, *TEXT[:2], *(text + packed for text in TEXT[:2] for packed in COMPRESSED))


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Training and test rows with the same columns, the classes by name, and lines on what was found."""

    train: "pandas.DataFrame"
    test: "pandas.DataFrame"
    kinds: dict[str, Kind]
    classes: Sequence[str]
    messages: Sequence[str]


@final
@configurable
class TableFile(Dataset):
    """A classification of rows, as the smallest square images [N, S, S, 1] with a pixel for every feature.

    What becomes of a column says `bitsweep.data.columns.Encoder`; percentiles, medians and words are those of the
    training rows. Columns go by their names.

    Attributes:
        root: a table, compressed or not, which is split; a folder with ``train.csv`` and ``test.csv``; or one that
            holds a single table.
        target: column with the classes.
        drop: columns that are no features.
        test_share: part of a single file's rows to test on; equal rows stay together.
        leaks: whether to refuse or to keep test rows that are training rows too.
    """

    pictures: ClassVar[bool] = False
    root: Place = ""
    target: str = ""
    drop: Several[str] = ()
    test_share: Annotated[Share, Field(gt=0, lt=1)] = 0.2
    leaks: Literal["refuse", "keep"] = "refuse"

    def source(self) -> str:
        """SHA-256 of the files, whose rows are looked through."""
        rows = self._rows()
        encoder = Encoder(rows.train, rows.kinds)
        side = _side(encoder.features)
        _say([*rows.messages, *encoder.messages(rows.test)])
        say(f"{encoder.features} features: images of {side} x {side} pixels, for model.image_size={side}")
        digest = hashlib.sha256()
        for file in self._files():
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()

    def decode(self) -> RawData:
        """Read, split and encode the rows."""
        rows = self._rows()
        _say(rows.messages)
        encoder = Encoder(rows.train, rows.kinds)
        places = {name: number for number, name in enumerate(rows.classes)}
        train, test = (
            Split(images=_images(encoder(part)), labels=part[self.target].map(places).to_numpy(np.int64))
            for part in (rows.train, rows.test)
        )
        return RawData(train=train, test=test, classes=tuple(rows.classes))

    @property
    def _key(self) -> str:
        return f"dataset.root={self.root}"

    def _files(self) -> list[Path]:
        root = Path(self.root).expanduser()
        if self.root and root.is_file():
            return [root]
        entries = sorted(root.iterdir()) if self.root and root.is_dir() else []
        files = [file for file in entries if file.is_file() and file.name.lower().endswith(_ENDINGS)]
        halves = [[file for file in files if file.name.partition(".")[0] == part] for part in ("train", "test")]
        if all(len(half) == 1 for half in halves):
            return [half[0] for half in halves]
        if len(files) == 1:
            return files
        found = f", but {len(files)} CSV files that are neither" if files else ""
        raise DataError(
            f"{self._key}: neither a CSV file nor a folder with train.csv and test.csv or with one CSV file{found}; "
            "set dataset.root (Parquet does as well)"
        )

    def _rows(self) -> _Rows:
        """Read, check and split.

        Raises:
            DataError: columns or classes are missing, or test rows are training rows.
        """
        import pandas

        messages: list[str] = []
        files = self._files()
        frames = [_composed(read_table(file, key=self._key, messages=messages)) for file in files]
        self._check_names(frames, files)
        whole = frames
        frames = [frame.drop(columns=list(self.drop), errors="ignore") for frame in frames]
        if len(frames) == 2:
            frames[1] = self._aligned(frames[0], frames[1], messages)
        every_kind = {name: kind_of(whole[0][name]) for name in whole[0].columns}
        kinds = {name: every_kind[name] for name in frames[0].columns}
        kinds[self.target] = kind_of(pandas.concat([frame[self.target] for frame in frames]))
        for position, (file, frame) in enumerate(zip(files, frames, strict=True)):
            frames[position] = self._checked(frame, file, kinds, messages)
        del kinds[self.target]
        if not kinds:
            raise DataError(f"{self._key}: has no column beside {self.target}, and nothing to tell classes by")
        if len(frames) == 2:
            train, test = frames
            self._check_leaks(whole[0], whole[1], every_kind, messages)
        else:
            train, test = self._divided(frames[0], _rows_of(whole[0], every_kind))
        classes = self._classes(train, test, messages)
        if found := giveaways(train[list(kinds)], train[self.target]):
            messages.append(f"warning: {found[0]} alone tells the class of every training row: is it one of its names?")
        return _Rows(train=train, test=test, kinds=kinds, classes=classes, messages=messages)

    def _check_names(self, frames: "Sequence[pandas.DataFrame]", files: Sequence[Path]) -> None:
        for file, frame in zip(files, frames, strict=True):
            known = {name for each in frames for name in each.columns}
            dropped = [name for name in self.drop if name not in known and not name.startswith(UNNAMED)]
            for key, names in (("target", [self.target]), ("drop", dropped)):
                if missing := [name for name in names if name not in frame.columns]:
                    choice = ", ".join(frame.columns)
                    raise DataError(f"dataset.{key}={missing[0]}: no such column; choose from {choice} ({file.name})")

    def _aligned(self, train: "pandas.DataFrame", test: "pandas.DataFrame", messages: list[str]) -> "pandas.DataFrame":
        """The test rows with the columns of the training rows, in their order."""
        extra = [name for name in test.columns if name not in train.columns]
        if missing := [name for name in train.columns if name not in test.columns]:
            has = f", which has {some(extra)} instead" if extra else ""
            raise DataError(f"{self._key}: the test rows lack {some(missing)}{has}; rename or add it")
        if extra:
            messages.append(f"the test rows have {some(extra)}, which the training rows lack: left out")
        return test[list(train.columns)]

    def _checked(
        self, frame: "pandas.DataFrame", file: Path, kinds: dict[str, Kind], messages: list[str]
    ) -> "pandas.DataFrame":
        """The same rows with their classes in one spelling each."""
        labels = named_classes(frame[self.target], kinds[self.target])
        if len(without := frame[self.target][labels == ""]):
            raise DataError(
                f"{self._key}: {counted(len(without), 'row')} of {file.name} without {self.target} "
                f"({some_of(without.unique())}); fill in or remove"
            )
        if kinds[self.target] == "numbers" and (ways := merged_classes(frame[self.target], labels)):
            messages.append(f"{file.name}: {some_of(ways)} are one class, as numbers in {self.target} are")
        for name, kind in kinds.items():
            if name != self.target and not present(frame[name], kind).any():
                raise DataError(f"{self._key}: {self._why_empty(frame[name], kind, file)}")
            if name != self.target and (odd := number_spellings(frame[name], kind)):
                raise DataError(
                    f"{self._key}: {name} of {file.name} holds numbers in another spelling ({some_of(odd)}), which "
                    f"would be words or missing; write them as 1234.5, or set dataset.drop=[{name}]"
                )
            if name != self.target:
                messages += [f"{file.name}: {line}" for line in messages_about_cells(frame[name], kind)]
        return frame.assign(**{self.target: labels})

    @staticmethod
    def _why_empty(cells: "pandas.Series", kind: Kind, file: Path) -> str:
        """What is to be done about a column that holds nothing of its kind."""
        if not (odd := [cell for cell in cells.unique() if cell]):
            return f"no row of {file.name} has {cells.name}; name it in dataset.drop"
        wanted = "true or false" if kind == "truths" else "numbers"
        return (
            f"{cells.name} of {file.name} holds {some_of(odd)}, and {wanted} in the training rows; write both alike, "
            f"or set dataset.drop=[{cells.name}]"
        )

    def _divided(self, frame: "pandas.DataFrame", rows: "pandas.Series") -> "tuple[pandas.DataFrame, pandas.DataFrame]":
        """Training and test rows, with the same share of every class.

        Args:
            rows: the same for equal rows, which come to the same side, unless leaks are kept.
        """
        from sklearn.model_selection import train_test_split

        first = frame if self.leaks == "keep" else frame[~rows.duplicated()]
        counts = first[self.target].value_counts()
        if alone := sorted(map(str, counts[counts < 2].index)):
            raise DataError(
                f"{self._key}: classes with one row alone: {len(alone)} of {len(counts)} ({some(alone)}); each needs "
                f"one for training and one for testing: is {self.target} the column of classes (dataset.target)?"
            )
        try:
            _, test = train_test_split(
                first, test_size=self.test_share, stratify=first[self.target], random_state=self.split_seed
            )
        except ValueError as error:
            raise DataError(f"{self._key}: cannot be split by {self.target}: {error}") from error
        tested = frame.index.isin(test.index) if self.leaks == "keep" else rows.isin(rows[test.index])
        return frame[~tested], frame[tested]

    def _check_leaks(
        self, train: "pandas.DataFrame", test: "pandas.DataFrame", kinds: Mapping[str, Kind], messages: list[str]
    ) -> None:
        """Refuse rows that are equal in every column, and tell of those that differ in dropped columns alone."""
        common = [name for name in train.columns if name in test.columns]
        kept = [name for name in common if name not in self.drop]
        looked_at = [(common, "in every column")]
        if kept != common:
            looked_at.append((kept, f"but for {some(self.drop)}"))
        for columns, where in looked_at:
            seen, asked = (_rows_of(frame[columns], kinds) for frame in (train, test))
            if not (count := int(asked.isin(seen).sum())):
                continue
            what = f"{count} of {len(test)} test rows are training rows too, {where}"
            if columns is common and self.leaks == "refuse":
                raise DataError(f"{self._key}: {what}; remove them, or set dataset.leaks=keep")
            messages.append(f"warning: {what}")
            return

    def _classes(self, train: "pandas.DataFrame", test: "pandas.DataFrame", messages: list[str]) -> list[str]:
        classes = sorted(set(train[self.target]))
        there = set(test[self.target])
        if unknown := sorted(there - set(classes)):
            many = 2 * len(classes) > len(train)
            hint = f": is {self.target} the column of classes (dataset.target)?" if many else "; give it some"
            raise DataError(f"{self._key}: class {unknown[0]} has no training row{hint}")
        if len(classes) < 2:
            raise DataError(f"{self._key}: every row is of class {classes[0]}; there must be two classes or more")
        if untested := [name for name in classes if name not in there]:
            raise DataError(f"{self._key}: class {untested[0]} has no test row; give it some")
        messages += look_alikes(classes)
        return classes


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        say(line)


def _composed(frame: "pandas.DataFrame") -> "pandas.DataFrame":
    """The same with each letter and its accents as one character: some systems write them as two."""
    cells = {name: frame[name].str.normalize("NFC") for name in frame.columns}
    return frame.assign(**cells).rename(columns=lambda name: unicodedata.normalize("NFC", name))


def _rows_of(frame: "pandas.DataFrame", kinds: Mapping[str, Kind]) -> "pandas.Series":
    """A hash for each row, the same however a number is written."""
    import pandas

    cells = frame.assign(**{name: as_numbers(frame[name], kinds[name]) for name in frame.columns})
    return pandas.util.hash_pandas_object(cells, index=False)


def _side(features: int) -> int:
    return math.isqrt(features - 1) + 1


def _images(features_NF: Array) -> Array:
    """The smallest squares that hold the features, uint8 [N, S, S, 1]."""
    count, features = features_NF.shape
    side = _side(features)
    pixels = np.zeros((count, side * side), np.uint8)
    pixels[:, :features] = features_NF
    return pixels.reshape(-1, side, side, 1)
