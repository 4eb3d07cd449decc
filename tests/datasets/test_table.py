"""Rows as images, against what they say."""

import csv
import gzip
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from bitsweep.datasets.table import TableFile
from bitsweep.errors import DataError
from bitsweep.results import RawData

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
    (folder / "test.csv").write_text(HEADER + "0,51,blue,a\n1,9,red,b\n")
    assert table(folder).source() != before


def spoil(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("spoilt", "knobs", "named"),
    [
        ({}, {"target": "sort"}, r"dataset.target=sort: no such column; choose from id, size, colour, kind"),
        ({}, {"drop": ("nr",)}, r"dataset.drop=nr: no such column"),
        ({"test.csv": HEADER + "0,1,red,\n"}, {}, "1 row of test.csv without kind"),
        ({"test.csv": HEADER + "0,1,red,c\n"}, {}, "class c has no training row"),
        ({"test.csv": HEADER + "0,1,green,a\n"}, {}, "class b has no test row"),
        ({"test.csv": HEADER.replace("size", "Size") + "0,1,red,a\n"}, {}, "lack size, which has Size instead; rename"),
        ({"test.csv": HEADER.replace("size", "kind") + "0,1,red,a\n"}, {}, "several columns kind"),
        ({"test.csv": HEADER}, {}, "test.csv has no rows"),
        ({}, {"drop": ("id", "size", "colour")}, "no column beside kind"),
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
    with pytest.raises(DataError, match=r"classes with one row alone: 1 of 2 \(b\); each needs one for training"):
        table(tmp_path / "all.csv").decode()


def test_nothing_there_is_said(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(DataError, match="neither a CSV file nor a folder"):
            table(root).source()


def test_the_passengers(sample_data: Path) -> None:
    data = table(sample_data / "airline", target="satisfaction", drop=("id",)).decode()
    assert len(data.train) + len(data.test) == 25_976
    assert data.classes == ("neutral or dissatisfied", "satisfied")
    assert data.train.images.shape[1:] == (6, 6, 1)


def numbers(count: int, seed: int) -> "pandas.DataFrame":
    """Three classes, and five numbers p, q, r, s, t."""
    rng = np.random.default_rng(seed)
    return pandas.DataFrame(rng.normal(size=(count, 5)).round(6), columns=list("pqrst")).assign(y=np.arange(count) % 3)


@pytest.fixture
def plain(tmp_path: Path) -> tuple[TableFile, RawData]:
    """A table without any accident, and what it becomes."""
    for part, count in (("train", 60), ("test", 30)):
        numbers(count, seed=count).to_csv(tmp_path / f"{part}.csv", index=False)
    made = TableFile(name="table", root=str(tmp_path), target="y")
    return made, made.decode()


def same(first: RawData, second: RawData) -> bool:
    pairs = [(getattr(first, part), getattr(second, part)) for part in ("train", "test")]
    equal = [np.array_equal(a.images, b.images) and np.array_equal(a.labels, b.labels) for a, b in pairs]
    return all(equal) and first.classes == second.classes


def change(made: TableFile, part: str, how: Callable[["pandas.DataFrame"], "pandas.DataFrame"]) -> None:
    file = Path(made.root) / f"{part}.csv"
    how(pandas.read_csv(file, dtype=str)).to_csv(file, index=False)


def test_columns_go_by_their_names(plain: tuple[TableFile, RawData], capsys: pytest.CaptureFixture[str]) -> None:
    made, expected = plain
    change(made, "test", lambda rows: rows[["y", "r", "p", "q", "t", "s"]].assign(extra="1.0"))
    assert same(made.decode(), expected)
    assert "the test rows have extra, which the training rows lack: left out" in capsys.readouterr().out
    change(made, "test", lambda rows: rows.drop(columns=["p", "extra"]))
    with pytest.raises(DataError, match=r"the test rows lack p; rename or add it$"):
        made.source()


@pytest.mark.parametrize(
    "cell", ["?", '3.2"', '"3.2', "1\0", "2024-05-01", "inf", "x", "0x10", "1_0", "true", "NA", "1,5", "a\nb"],
)  # fmt: skip
def test_an_odd_cell_is_a_missing_number(
    cell: str, plain: tuple[TableFile, RawData], capsys: pytest.CaptureFixture[str]
) -> None:
    made, expected = plain
    file = Path(made.root) / "train.csv"
    lines = file.read_text().splitlines()
    written = f'"{cell}"' if set(cell) & {",", "\n"} else cell
    lines[7] = written + lines[7][lines[7].index(",") :]
    file.write_text("\n".join(lines))
    made.source()
    said = capsys.readouterr().out
    if cell == "NA":
        assert "train.csv: 1 of 60 rows have no p" in said
    else:
        assert f"train.csv: 1 of 60 cells of p are no numbers ({cell!a}): they count as missing" in said
    found = made.decode()
    median = np.median(np.delete(found.train.images[:, 0, 0, 0], 6))
    assert abs(float(found.train.images[6, 0, 0, 0]) - median) <= 1
    assert np.array_equal(found.train.images[:, 0, 1:], expected.train.images[:, 0, 1:])
    assert np.array_equal(found.train.labels, expected.train.labels)


@pytest.mark.parametrize(
    "how", ["{:.3f} %", "{:.3f}%", "$ {:.3f}", "{:,.3f}", "{:_.0f}", "{:.3f} kg", "comma", "minus"]
)
def test_numbers_in_another_spelling_become_no_words(how: str, plain: tuple[TableFile, RawData]) -> None:
    made, _ = plain

    def spelt(cell: str) -> str:
        value = 1e6 * float(cell)
        own = {"comma": f"{value:.3f}".replace(".", ","), "minus": f"\u2212{abs(value):.3f}"}
        return own.get(how, "") or how.format(value)

    for part in ("train", "test"):
        change(made, part, lambda rows: rows.assign(p=rows.p.map(spelt)))
    with pytest.raises(DataError, match=r"p of train\.csv holds numbers in another spelling \(.*drop=\[p\]"):
        made.source()


def test_a_few_choices_are_words_whatever_they_are(plain: tuple[TableFile, RawData]) -> None:
    made, _ = plain
    for part in ("train", "test"):
        change(made, part, lambda rows: rows.assign(p=["10 %", "20 %"] * (len(rows) // 2)))
    assert made.decode().train.images[0, 0, :2, 0].tolist() == [255, 0]


def test_a_column_that_holds_something_else_in_test_rows_is_told(plain: tuple[TableFile, RawData]) -> None:
    made, _ = plain
    for train, test, wanted in (("True", "1", "true or false"), ("1", "True", "numbers"), ("1.5", "1,5", "numbers")):
        change(made, "train", lambda rows, cell=train: rows.assign(p=cell))
        change(made, "test", lambda rows, cell=test: rows.assign(p=cell))
        with pytest.raises(
            DataError, match=rf"p of test\.csv holds '{test}', and {wanted} in the training rows; write"
        ):
            made.source()


@pytest.mark.parametrize("how", ["{:.2f}kg", "EUR {:.2f}", '="{:.2f}"', "'{:.2f}", "[{:.2f}]", "{:.2f}D+00", "{:.2f}k"])
def test_numbers_beside_something_become_no_words(how: str, plain: tuple[TableFile, RawData]) -> None:
    made, _ = plain
    for part in ("train", "test"):
        change(made, part, lambda rows: rows.assign(p=[how.format(9 * float(cell)) for cell in rows.p]))
    with pytest.raises(DataError, match=r"p of train\.csv holds numbers in another spelling"):
        made.source()


@pytest.mark.parametrize(("separator", "how"), [(",", "{:,.0f}"), (";", "{:,.0f}"), (",", "accounts")])
def test_numbers_of_which_some_are_spelt_otherwise_are_refused(
    separator: str, how: str, plain: tuple[TableFile, RawData]
) -> None:
    made, _ = plain

    def spelt(cell: str) -> str:
        value = float(cell)
        return how.format(900 * value) if how != "accounts" else f"({-value:.3f})" if value < 0 else f"{value:.3f}"

    for part in ("train", "test"):
        file = Path(made.root) / f"{part}.csv"
        rows = pandas.read_csv(file, dtype=str)
        rows.assign(p=rows.p.map(spelt)).to_csv(file, index=False, sep=separator)
    with pytest.raises(DataError, match=r"p of train\.csv holds numbers in another spelling"):
        made.source()


def test_product_codes_are_words(plain: tuple[TableFile, RawData]) -> None:
    made, _ = plain
    for part in ("train", "test"):
        change(made, part, lambda rows: rows.assign(p=[f"{n}A" for n in range(len(rows))]))
    assert made.decode().train.images.shape[1:] == (8, 8, 1)


def test_numbers_among_many_marks_are_numbers(
    plain: tuple[TableFile, RawData], capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = plain
    numbers(300, seed=0).to_csv(Path(made.root) / "train.csv", index=False)
    change(made, "train", lambda rows: rows.assign(p=rows.p.where(np.arange(300) % 5 == 0, "?")))
    assert made.decode().train.images.shape[1:] == (3, 3, 1)
    assert "240 of 300 cells of p are no numbers ('?'): they count as missing" in capsys.readouterr().out


@pytest.mark.parametrize("cell", ["1.7e308", "-1.7e308"])
def test_numbers_whose_difference_is_not_finite_are_missing(
    cell: str, plain: tuple[TableFile, RawData], capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = plain
    change(made, "train", lambda rows: rows.assign(p=[cell, *rows.p[1:]]))
    made.decode()
    assert f"1 of 60 cells of p are no numbers ('{cell}')" in capsys.readouterr().out


def test_a_constant_column_says_nothing(plain: tuple[TableFile, RawData]) -> None:
    made, _ = plain
    change(made, "train", lambda rows: rows.assign(c="5"))
    change(made, "test", lambda rows: rows.assign(c=["4", "6"] * (len(rows) // 2)))
    assert made.decode().test.images[:2, 1, 2, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda rows: rows.assign(p=["-999" if n % 9 == 0 else cell for n, cell in enumerate(rows.p)]),
         r"p is -999 in 7 rows, far from -\S+ to \S+ in others: if that means that it is missing, leave"),
        (lambda rows: rows.assign(a=rows.y.map({"0": "x", "1": "y", "2": "z"})),
         "warning: a alone tells the class of every training row"),
        (lambda rows: rows.assign(y=["01" if n == 1 else cell for n, cell in enumerate(rows.y)]),
         "train.csv: '01', '1' are one class"),
        (lambda rows: pandas.concat([rows, rows[:3] * 0, rows[:2] * 0]), "train.csv: 5 rows left out: empty"),
        (lambda rows: pandas.concat([rows, pandas.DataFrame([list(rows)], columns=list(rows)), rows]),
         "train.csv: 1 row left out: the header again"),
    ],
    ids=["code", "giveaway", "class in two ways", "empty rows", "header again"],
)  # fmt: skip
def test_what_may_mislead_is_told(
    how: Callable[["pandas.DataFrame"], "pandas.DataFrame"],
    said: str,
    plain: tuple[TableFile, RawData],
    capsys: pytest.CaptureFixture[str],
) -> None:
    made, _ = plain
    made.source()
    assert not re.search(said, capsys.readouterr().out)
    for part in ("train", "test"):
        change(made, part, how)
    made.source()
    assert re.search(said, capsys.readouterr().out)


def test_test_rows_on_another_scale_are_told(
    plain: tuple[TableFile, RawData], capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = plain
    change(made, "test", lambda rows: rows.assign(p=rows.p.astype(float) + 100))
    made.source()
    assert "warning: p of 30 of 30 test rows is not between -" in capsys.readouterr().out


def test_letters_with_accents_are_one_letter(plain: tuple[TableFile, RawData]) -> None:
    made, _ = plain
    results = []
    for test in ("e\u0301", "\u00e9"):
        for part, letter in (("train", "\u00e9"), ("test", test)):
            change(made, part, lambda rows, letter=letter: rows.assign(
                colour=letter, y=[f"{letter}{n % 3}" for n in range(len(rows))]
            ))  # fmt: skip
        results.append(made.decode())
    assert same(*results)
    assert results[0].classes == ("\u00e90", "\u00e91", "\u00e92")


def test_lines_in_two_encodings_are_refused(tmp_path: Path) -> None:
    lines = [f"{n},\u00e9\n".encode("latin-1" if n % 2 else "utf-8") for n in range(20)]
    (tmp_path / "a.csv").write_bytes(b"p,y\n" + b"".join(lines))
    with pytest.raises(DataError, match=r"some lines of a\.csv are UTF-8, and others are not: save all of it as UTF-8"):
        TableFile(name="table", root=str(tmp_path / "a.csv"), target="y").source()


def test_large_integers_are_numbers(plain: tuple[TableFile, RawData]) -> None:
    made, expected = plain
    for part in ("train", "test"):
        change(
            made,
            part,
            lambda rows: rows.assign(p=(rows.p.astype(float) * 1e6).round().map(lambda v: f"{v:.0f}") + "0" * 25),
        )
    found = made.decode()
    assert np.abs(found.train.images.astype(int) - expected.train.images).max() <= 1


def test_booleans_are_features(plain: tuple[TableFile, RawData]) -> None:
    made, _ = plain
    for part in ("train", "test"):
        change(made, part, lambda rows: rows.assign(flag=rows.p.astype(float) > 0))
    found = made.decode()
    flags = numbers(60, seed=60).p > 0
    assert np.array_equal(found.train.images[:, 1, 2, 0], 255 * flags)


def test_what_windows_writes_is_read(tmp_path: Path) -> None:
    rows = numbers(60, seed=0).assign(y=["\u20ac", "\u201cb\u201d", "\u00e9"] * 20)
    rows.to_csv(tmp_path / "all.csv", index=False, encoding="cp1252")
    classes = TableFile(name="table", root=str(tmp_path / "all.csv"), target="y").decode().classes
    assert classes == ("\u00e9", "\u201cb\u201d", "\u20ac")


def test_what_becomes_switches_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{n},{n % 7},word {n},{'ab'[n % 2]}\n" for n in range(101)]
    (folder / "train.csv").write_text(HEADER + "".join(rows))
    table(folder).source()
    said = capsys.readouterr().out
    assert "colour is a column of words: 101 features, one for each ('word 0', 'word 1', 'word 10', ...); if it" in said
    assert "dataset.drop=[colour]" in said
    assert "4 of 4 test rows have words in colour that no training row has ('blue', 'red', '', ...)" in said
    assert "102 features: images of 11 x 11 pixels, for model.image_size=11" in said


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["NA", "None", "cat"], ("NA", "None", "cat")),
        (["0", "0.0", "1"], ("0", "1")),
        (["1", "01", "2.50"], ("1", "2.5")),
        (["-1", "1", "+1"], ("-1", "1")),
        (["True", "False", "True"], ("False", "True")),
        (["cat", "cat ", "dog"], ("cat", "dog")),
        (["a,b", "\u00e9", "$x$"], ("$x$", "a,b", "\u00e9")),
    ],
)
def test_labels_are_names(
    labels: list[str], classes: tuple[str, ...], plain: tuple[TableFile, RawData], capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = plain
    for part in ("train", "test"):
        change(made, part, lambda rows: rows.assign(y=[labels[n % 3] for n in range(len(rows))]))
    assert made.decode().classes == classes
    assert ("spaces around cells are taken off (y)" in capsys.readouterr().out) == ("cat " in labels)


def test_labels_that_are_missing_or_alike_are_told(
    plain: tuple[TableFile, RawData], capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = plain
    for part in ("train", "test"):
        change(made, part, lambda rows: rows.assign(y=["cat", "Cat", "dog"] * (len(rows) // 3)))
    assert made.decode().classes == ("Cat", "cat", "dog")
    assert "the classes 'Cat' and 'cat' look alike, and are two" in capsys.readouterr().out
    change(made, "train", lambda rows: rows.assign(y=[f"{n}.5" for n in range(len(rows))]))
    change(made, "test", lambda rows: rows.assign(y=["0.5"] * (len(rows) - 1) + ["77.5"]))
    with pytest.raises(DataError, match=r"77\.5 has no training row: is y the column of classes"):
        made.source()
    change(made, "train", lambda rows: rows.assign(y=["0", "1", "2"] * 19 + ["?", "NA", "1"]))
    change(made, "test", lambda rows: rows.assign(y=["0", "1", "2"] * 10))
    with pytest.raises(DataError, match=r"2 rows of train\.csv without y \('\?', 'NA'\); fill in or remove"):
        made.source()
    change(made, "train", lambda rows: rows.assign(y="2"))
    change(made, "test", lambda rows: rows.assign(y="2"))
    with pytest.raises(DataError, match="every row is of class 2; there must be two classes or more"):
        made.source()


def test_test_rows_that_are_training_rows(plain: tuple[TableFile, RawData], capsys: pytest.CaptureFixture[str]) -> None:
    made, _ = plain
    train = pandas.read_csv(Path(made.root) / "train.csv", dtype=str)
    change(made, "test", lambda rows: pandas.concat([rows, train[:4]]))
    with pytest.raises(DataError, match=r"4 of 34 test rows are training rows too, in every column; .*leaks=keep$"):
        made.source()
    change(made, "test", lambda rows: rows.assign(p=rows.p + "0"))  # the same number, written otherwise
    with pytest.raises(DataError, match=r"4 of 34 test rows are training rows too"):
        made.source()
    assert len(replace(made, leaks="keep").decode().test) == 34
    assert "warning: 4 of 34 test rows are training rows too" in capsys.readouterr().out
    for part, start in (("train", 0), ("test", 1000)):
        change(made, part, lambda rows, start=start: rows.assign(id=np.arange(start, start + len(rows))))
    assert len(replace(made, drop=("id",)).decode().test) == 34
    assert "warning: 4 of 34 test rows are training rows too, but for id" in capsys.readouterr().out


def test_equal_rows_are_on_the_same_side(tmp_path: Path) -> None:
    rows = numbers(60, seed=0)
    pandas.concat([rows, rows, rows]).to_csv(tmp_path / "all.csv", index=False)
    made = TableFile(name="table", root=str(tmp_path), target="y", test_share=0.25)
    found = made.decode()
    train, test = ({image.tobytes() for image in part.images} for part in (found.train, found.test))
    assert len(found.test) == 45
    assert not train & test
    kept = replace(made, leaks="keep").decode()
    assert {image.tobytes() for image in kept.train.images} & {image.tobytes() for image in kept.test.images}


FORMS: dict[str, Callable[["pandas.DataFrame", Path], None]] = {
    "semicolons.csv": lambda rows, file: rows.to_csv(file, sep=";", index=False),
    "german.csv": lambda rows, file: rows.to_csv(file, sep=";", decimal=",", index=False),
    "tabs.csv": lambda rows, file: rows.to_csv(file, sep="\t", index=False),
    "tabs.tsv": lambda rows, file: rows.to_csv(file, sep="\t", index=False),
    "bars.csv": lambda rows, file: rows.to_csv(file, sep="|", index=False),
    "latin.csv": lambda rows, file: rows.to_csv(file, index=False, encoding="latin-1"),
    "wide.csv": lambda rows, file: rows.to_csv(file, index=False, encoding="utf-16"),
    "wide_without_mark.csv": lambda rows, file: rows.to_csv(file, index=False, encoding="utf-16-le"),
    "marked.csv": lambda rows, file: rows.to_csv(file, index=False, encoding="utf-8-sig"),
    "quoted.csv": lambda rows, file: rows.to_csv(file, index=False, quoting=csv.QUOTE_ALL),
    "windows.csv": lambda rows, file: rows.to_csv(file, index=False, lineterminator="\r\n"),
    "packed.csv.gz": lambda rows, file: rows.to_csv(file, index=False),
    "packed.csv.xz": lambda rows, file: rows.to_csv(file, index=False),
    "packed.csv.bz2": lambda rows, file: rows.to_csv(file, index=False),
    "packed.csv.zip": lambda rows, file: rows.to_csv(file, index=False),
    "small.csv": lambda rows, file: rows.to_csv(file, sep=";", decimal=",", index=False, float_format="%.17e"),
    "numbered.csv": lambda rows, file: rows.to_csv(file),
    "excel.csv": lambda rows, file: file.write_text("sep=;\n" + rows.to_csv(sep=";", decimal=",", index=False)),
    "widest.csv": lambda rows, file: rows.to_csv(file, index=False, encoding="utf-32"),
    "rows.parquet": lambda rows, file: rows.to_parquet(file),
    "index.parquet": lambda rows, file: rows.set_index("p").to_parquet(file),
    "lines.csv": lambda rows, file: file.write_text(rows.to_csv(index=False).replace("colour", '"  colour\n"')),
    "bytes.parquet": lambda rows, file: rows.assign(colour=rows.colour.str.encode("utf-8")).to_parquet(file),
}


@pytest.mark.parametrize("form", FORMS)
def test_tables_come_in_many_forms(form: str, tmp_path: Path) -> None:
    rows = numbers(60, seed=0).assign(colour=["r\u00f6t", "bl\u00e5", "gr, y"] * 20)
    rows.to_csv(tmp_path / "plain.csv", index=False)
    (tmp_path / "folder").mkdir()
    FORMS[form](rows, tmp_path / "folder" / form)
    expected = TableFile(name="table", root=str(tmp_path / "plain.csv"), target="y").decode()
    found = TableFile(name="table", root=str(tmp_path / "folder"), target="y")
    assert same(found.decode(), expected)
    assert found.source()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"\0" * 400, "cannot be read as CSV|which is no text"),
        (b"\x1f\x8b\x08broken", "cannot be read as CSV"),
        (b"PK\x03\x04 ...", "a.csv is an Excel workbook or an archive: save the table as CSV"),
        (b"\x7fELF\x02\x01,b\nx,y\n", "which is no text: is it a table"),
        (b'p,y\n1,a\n2,"b\n3,c,d\n', "cannot be read as CSV"),
        (b"p,y\n1,a,5\n2,b,6\n", "cannot be read as CSV"),
        (b"<!DOCTYPE html>\n<p>Not found, y</p>", "a.csv is a web page: save the table as CSV"),
        (b'\n[{"p": 1, "y": 2}]', "a.csv is JSON: save"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a.csv is a pointer of Git LFS"),
        (b"# ours\np,y\n1,a\n", "CSV .*; its first line must name the columns"),
    ],
)
def test_what_is_no_table_is_one_line(content: bytes, named: str, tmp_path: Path) -> None:
    for name in ("a.csv", "a.csv.gz", "a.csv.xz", "a.csv.zip", "a.parquet"):
        (tmp_path / name).write_bytes(content)
        expected = named if name == "a.csv" else f"{name} (cannot be read as|is|has)|no such column"
        with pytest.raises(DataError, match=expected) as caught:
            TableFile(name="table", root=str(tmp_path / name), target="y").source()
        assert "\n" not in str(caught.value)
