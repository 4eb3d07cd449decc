"""Data sets as the ``datasets`` package of Hugging Face saves them, and as its hub keeps them."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from bitsweep.config.configurable import configurable
from bitsweep.data.listing import Listing, named
from bitsweep.data.photographs import Photographs
from bitsweep.data.picture_tables import Table, joined, read_arrow, read_parquet
from bitsweep.data.table_listing import find_columns, labels_of, listing_of
from bitsweep.errors import DataError
from bitsweep.text import say, some

#: What ``save_to_disk`` writes: the names of the parts, and the files of one.
_PARTS, _STATE = "dataset_dict.json", "state.json"
_TRAIN = ("train", "training")
_TEST = ("test", "testing", "validation", "valid", "val", "dev")


@final
@configurable
class HuggingFace(Photographs):
    """Pictures in a folder that ``save_to_disk`` wrote, or in files of Parquet as the hub has them.

    The parts of a data set are those of the saved folder, or the first word of a file's name (``train-00000.parquet``)
    or of the folder that it is in. Names of the classes are taken from there.

    Attributes:
        image_column, label_column: of the picture and of its class; empty to find them by their type or usual name.
        train_split, test_split: names of the parts; empty for ``train``, and ``test`` or else ``validation``.
    """

    train_split: str = ""
    test_split: str = ""
    image_column: str = ""
    label_column: str = ""

    def listed(self, classes: Sequence[str]) -> Listing:
        """The pictures by the rows of all parts."""
        key, root = f"dataset.root={self.root}", Path(self.root).expanduser()
        if not self.root or not root.is_dir():
            raise DataError(f"{key}: no such folder; name one that save_to_disk wrote, or one with Parquet files")
        with named(key):
            tables = _tables(root)
            train, test = self._parts(list(tables), key)
            chosen = [name for name in (train, test) if name]
            table = joined([tables[name] for name in chosen])
            image, label, _ = find_columns(table, image=self.image_column, label=self.label_column, split="")
            labels, names = labels_of(table, label)
            parts = [("test" if name == test else "train") for name in chosen for _ in range(len(tables[name]))]
            return listing_of(
                table, folder=root, image=image, labels=labels, classes=names, parts=parts if test else None, key=key
            )

    def _parts(self, names: Sequence[str], key: str) -> tuple[str, str]:
        """Names of the parts for training and testing; one is empty where there is none."""
        chosen = []
        for knob, given, usual in (("train_split", self.train_split, _TRAIN), ("test_split", self.test_split, _TEST)):
            if given and given not in names:
                raise DataError(f"dataset.{knob}={given}: no such part; choose from {', '.join(names)}")
            chosen.append(given or next((each for each in usual if each in names), ""))
        train, test = chosen
        if not train and not test:
            if len(names) > 1:
                raise DataError(
                    f"{key}: has the parts {', '.join(names)}; choose with dataset.train_split and dataset.test_split"
                )
            train = names[0]
        if beside := sorted(set(names) - {train, test}):
            say(f"left out: {some(beside)}; validation images are held out from training")
        return train, test


def _tables(root: Path) -> dict[str, Table]:
    """Every part by its name; that of a data set without parts is ``all``."""
    if (root / _PARTS).is_file():
        return {name: _saved(root / name) for name in _json(root / _PARTS)["splits"]}
    if (root / _STATE).is_file():
        return {"all": _saved(root)}
    found: dict[str, list[Path]] = {}
    for file in sorted(root.rglob("*.parquet")):
        found.setdefault(_part_of(file, root), []).append(file)
    if not found:
        raise DataError("holds neither what save_to_disk writes (state.json) nor Parquet files")
    return {name: read_parquet(files) for name, files in found.items()}


def _saved(folder: Path) -> Table:
    return read_arrow([folder / file["filename"] for file in _json(folder / _STATE)["_data_files"]])


def _json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise DataError(f"{file.name} cannot be read as JSON ({error})") from error
    return content


def _part_of(file: Path, root: Path) -> str:
    """The part that a file's name or folder says it is of: ``train-00000-of-00002.parquet``, ``train/0000.parquet``."""
    first = re.split(r"[-_.]", file.name)[0].lower()
    folders = [name.lower() for name in file.relative_to(root).parts[-2:-1]]
    return next((name for name in (first, *folders) if name in (*_TRAIN, *_TEST)), "all")
