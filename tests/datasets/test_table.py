"""Rows as images, against what they say."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitsweep.datasets.table import TableFile
from bitsweep.errors import DataError

HEADER = "id,size,colour,kind\n"


def table(root: Path, **knobs: Any) -> TableFile:
    return TableFile(**{"name": "table", "root": str(root), "target": "kind", "drop": ("id",)} | knobs)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """101 training rows with sizes 0 to 100, and four test rows."""
    colours = ["red", "", "blue"]
    train = [f"{n},{n},{colours[n % 3]},{'ab'[n % 2]}\n" for n in range(101)]
    (tmp_path / "train.csv").write_text(HEADER + "".join(train))
    (tmp_path / "test.csv").write_text(HEADER + "0,50,blue,a\n1,1000,red,b\n2,,,a\n3,-5,green,b\n")
    return tmp_path


def test_numbers_are_spread_and_words_are_switches(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = table(folder).decode()
    assert data.classes == ("a", "b")
    assert data.test.labels.tolist() == [0, 1, 0, 1]
    assert (data.train.images.shape, data.test.images.shape) == ((101, 2, 2, 1), (4, 2, 2, 1))
    # size between its percentiles 1 and 99; then no colour, blue and red
    expected = [[128, 0, 255, 0], [255, 0, 0, 255], [128, 255, 0, 0], [0, 0, 0, 0]]
    assert np.array_equal(data.test.images.reshape(4, 4), expected)
    assert data.train.images.reshape(-1, 4)[:, 0].tolist() == [
        round(255 * min(1, max(0, (n - 1) / 98))) for n in range(101)
    ]
    said = capsys.readouterr().out
    assert "train.csv: 34 of 101 rows have no colour" in said
    assert "test.csv: 1 of 4 rows have no size" in said


def test_one_file_is_split_with_equal_shares_of_the_classes(tmp_path: Path) -> None:
    file = tmp_path / "all.csv"
    file.write_text(HEADER + "".join(f"{n},{n},red,{'ab'[n % 5 == 0]}\n" for n in range(100)))
    data = table(file, test_share=0.25).decode()
    assert np.bincount(data.train.labels).tolist() == [60, 15]
    assert np.bincount(data.test.labels).tolist() == [20, 5]
    again, other = table(file, test_share=0.25).decode(), table(file, test_share=0.25, split_seed=1).decode()
    assert np.array_equal(again.test.images, data.test.images)
    assert not np.array_equal(other.test.images, data.test.images)


@pytest.mark.parametrize("name", ["all.csv", "test.csv.gz"])
def test_the_only_file_of_a_folder_is_split(name: str, tmp_path: Path) -> None:
    text = (HEADER + "".join(f"{n},{n},red,{'ab'[n % 5 == 0]}\n" for n in range(100))).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    (tmp_path / "notes.txt").write_text("no table")
    there, named = table(tmp_path), table(tmp_path / name)
    assert there.source() == named.source()
    assert np.array_equal(there.decode().test.images, named.decode().test.images)
    (tmp_path / "more.csv").write_text(HEADER)
    with pytest.raises(DataError, match="with one CSV file, but 2 CSV files that are neither; set"):
        there.source()


def test_the_fingerprint_follows_the_files(folder: Path) -> None:
    before = table(folder).source()
    (folder / "test.csv").write_text(HEADER + "0,51,blue,a\n")
    assert table(folder).source() != before


def spoil(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("spoilt", "knobs", "named"),
    [
        ({}, {"target": "sort"}, r"dataset.target=sort: no such column; choose from id, size, colour, kind"),
        ({}, {"drop": ("nr",)}, r"dataset.drop=nr: no such column"),
        ({"test.csv": HEADER + "0,1,red,\n"}, {}, "1 rows of test.csv have no kind"),
        ({"test.csv": HEADER + "0,1,red,c\n"}, {}, "class c has no training row"),
        ({"test.csv": HEADER + "0,,red,a\n1,,red,b\n"}, {}, "no row of test.csv has size; name it in dataset.drop"),
        ({"test.csv": ""}, {}, "test.csv cannot be read as CSV"),
        ({"test.csv": HEADER + "0,1,red,a,more,and,more\n1\n"}, {}, "test.csv cannot be read|no such column|no kind"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, spoilt: dict[str, str], knobs: dict[str, Any], named: str) -> None:
    for name, text in spoilt.items():
        spoil(folder, name, text)
    with pytest.raises(DataError, match=named) as caught:
        table(folder, **knobs).decode()
    assert "\n" not in str(caught.value)


def test_a_class_of_one_row_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text(HEADER + "0,1,red,a\n1,2,red,a\n2,3,red,b\n")
    with pytest.raises(DataError, match="cannot be split by kind"):
        table(tmp_path / "all.csv").decode()


def test_nothing_there_is_said(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(DataError, match="neither a CSV file nor a folder"):
            table(root).source()


def test_the_passengers(sample_data: Path) -> None:
    data = table(sample_data / "airline", target="satisfaction", drop=("Unnamed: 0", "id")).decode()
    assert len(data.train) + len(data.test) == 25_976
    assert data.classes == ("neutral or dissatisfied", "satisfied")
    assert data.train.images.shape[1:] == (6, 6, 1)
