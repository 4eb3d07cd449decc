"""Rows of a CSV file as small grey images, a pixel for each feature, for networks that see no pictures in them."""

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, final

import numpy as np
from pydantic import Field

from bitsweep.config.configurable import Place, Share, configurable
from bitsweep.config.dataset import Dataset
from bitsweep.errors import DataError
from bitsweep.results import Array, RawData, Split

if TYPE_CHECKING:
    import pandas

#: Percentiles of the training rows between which a column of numbers is spread over a byte.
LOW, HIGH = 1, 99


@final
@configurable
class TableFile(Dataset):
    """A classification of rows, as the smallest square images [N, S, S, 1] with a pixel for every feature.

    A column of numbers is one feature, spread over 0 to 255 between its 1st and 99th percentile and clipped beyond; a
    missing number takes the median. A column of words is one feature, 0 or 255, for each word; a missing one is a word
    of its own, and one that no training row has is none of them. Percentiles, medians and words are those of the
    training rows.

    Attributes:
        root: a CSV file, compressed or not, which is split; a folder with ``train.csv`` and ``test.csv``; or one that
            holds a single CSV file, ``*.csv`` or ``*.csv.gz``.
        target: column with the classes.
        drop: columns that are no features.
        test_share: part of a single file's rows to test on.
    """

    pictures: ClassVar[bool] = False
    root: Place = ""
    target: str = ""
    drop: tuple[str, ...] = ()
    test_share: Annotated[Share, Field(gt=0, lt=1)] = 0.2

    def source(self) -> str:
        """SHA-256 of the files."""
        digest = hashlib.sha256()
        for file in self._files():
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()

    def decode(self) -> RawData:
        """Read, split and encode the rows."""
        frames = [self._read(file) for file in self._files()]
        train, test = frames if len(frames) == 2 else self._divided(frames[0])
        classes = sorted(set(train[self.target]))
        if unknown := sorted(set(test[self.target]) - set(classes)):
            raise DataError(f"dataset.root={self.root}: class {unknown[0]} has no training row; give it some")
        encode = _Encoder(train.drop(columns=[self.target]))
        parts = (
            Split(
                images=encode(part.drop(columns=[self.target])),
                labels=part[self.target].map(classes.index).to_numpy(np.int64),
            )
            for part in (train, test)
        )
        first, second = parts
        return RawData(train=first, test=second, classes=tuple(classes))

    def _files(self) -> list[Path]:
        root = Path(self.root).expanduser()
        if self.root and root.is_file():
            return [root]
        halves = [root / "train.csv", root / "test.csv"]
        if self.root and all(file.is_file() for file in halves):
            return halves
        files = sorted(file for kind in ("*.csv", "*.csv.gz") for file in root.glob(kind)) if self.root else []
        if len(files) == 1:
            return files
        found = f", but {len(files)} CSV files that are neither" if files else ""
        raise DataError(
            f"dataset.root={self.root}: neither a CSV file nor a folder with train.csv and test.csv or with one CSV "
            f"file{found}; set dataset.root"
        )

    def _read(self, file: Path) -> "pandas.DataFrame":
        import pandas

        try:
            frame = pandas.read_csv(file)
        except (OSError, ValueError, EOFError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise DataError(f"dataset.root={self.root}: {file.name} cannot be read as CSV ({reason})") from error
        for key, columns in (("target", (self.target,)), ("drop", self.drop)):
            if missing := [name for name in columns if name not in frame.columns]:
                raise DataError(f"dataset.{key}={missing[0]}: no such column; choose from {', '.join(frame.columns)}")
        if without := int(frame[self.target].isna().sum()):
            raise DataError(
                f"dataset.root={self.root}: {without} rows of {file.name} have no {self.target}; remove them"
            )
        frame = frame.drop(columns=list(self.drop))
        for name, count in frame.isna().sum().items():
            if count == len(frame):
                raise DataError(f"dataset.root={self.root}: no row of {file.name} has {name}; name it in dataset.drop")
            if count:
                print(f"{file.name}: {count} of {len(frame)} rows have no {name}", flush=True)
        return frame.assign(**{self.target: frame[self.target].astype(str)})

    def _divided(self, frame: "pandas.DataFrame") -> "tuple[pandas.DataFrame, pandas.DataFrame]":
        """Training and test rows, with the same share of every class."""
        from sklearn.model_selection import train_test_split

        try:
            train, test = train_test_split(
                frame, test_size=self.test_share, stratify=frame[self.target], random_state=self.split_seed
            )
        except ValueError as error:
            raise DataError(f"dataset.root={self.root}: cannot be split by {self.target}: {error}") from error
        return train, test


class _Encoder:
    """From rows to images, by what the training rows hold."""

    def __init__(self, train: "pandas.DataFrame") -> None:
        import pandas

        self._numbers = [name for name in train.columns if pandas.api.types.is_numeric_dtype(train[name])]
        self._words = {
            name: sorted(train[name].fillna("").astype(str).unique())
            for name in train.columns
            if name not in self._numbers
        }
        self._medians = {name: float(train[name].median()) for name in self._numbers}
        self._bounds = {name: np.nanpercentile(train[name], [LOW, HIGH]) for name in self._numbers}

    def __call__(self, frame: "pandas.DataFrame") -> Array:
        features: list[Array] = []
        for name in frame.columns:
            if name in self._words:
                words = frame[name].fillna("").astype(str).to_numpy()
                features += [255.0 * (words == word) for word in self._words[name]]
            else:
                low, high = self._bounds[name]
                values = frame[name].fillna(self._medians[name]).to_numpy(np.float64)
                features.append(255 * np.clip((values - low) / max(high - low, np.finfo(np.float64).tiny), 0, 1))
        side = math.isqrt(max(1, len(features)) - 1) + 1
        pixels = np.zeros((len(frame), side * side), np.uint8)
        pixels[:, : len(features)] = np.rint(np.stack(features, axis=1)) if features else 0
        return pixels.reshape(-1, side, side, 1)
