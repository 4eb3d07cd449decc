import csv
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from PIL import Image

from bitsweep.datasets.manifest import Manifest
from bitsweep.errors import DataError

CLASSES = ("ants", "bees")


def encoded(number: int) -> bytes:
    """A picture of one colour: its red is its number, its blue that of its class."""
    stream = BytesIO()
    Image.new("RGB", (9, 7), (number, 0, number % 2)).save(stream, format="png")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures, of ants and bees by turns."""
    (tmp_path / "images").mkdir()
    for number in range(12):
        (tmp_path / f"images/{number}.png").write_bytes(encoded(number))
    return tmp_path


def rows(**more: Any) -> list[dict[str, Any]]:
    given = {name: value if callable(value) else (lambda n, value=value: value) for name, value in more.items()}
    return [
        {"path": f"images/{n}.png", "label": CLASSES[n % 2]} | {name: value(n) for name, value in given.items()}
        for n in range(12)
    ]


def manifest(folder: Path, listed: list[dict[str, Any]], kind: str = "csv", **knobs: Any) -> Manifest:
    file = folder / f"list.{kind}"
    if kind == "csv":
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, listed[0])
            writer.writeheader()
            writer.writerows(listed)
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in listed))
    else:
        pandas.DataFrame(listed).to_parquet(file)
    return Manifest(**{"name": "list", "file": str(file), "store_size": 5, **knobs})


def red(data: Manifest, part: str) -> list[int]:
    raw = data.decode()
    split = getattr(raw, part)
    pixels = split.images[np.arange(len(split))]
    assert pixels[:, 0, 0, 2].tolist() == split.labels.tolist()
    return sorted(pixels[:, 0, 0, 0].tolist())


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_paths_with_parts(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = {0: "test", 1: "test", 2: "val", 3: "VAL"}
    data = manifest(folder, rows(split=lambda n: parts.get(n, "train")), kind)
    assert (red(data, "test"), red(data, "train")) == ([0, 1], list(range(4, 12)))
    assert data.decode().classes == CLASSES
    assert "left out: val; validation images are held out from training" in capsys.readouterr().out
    assert not data.lacks()


def test_rows_without_parts_are_split_and_paths_may_count_from_elsewhere(folder: Path) -> None:
    data = manifest(folder, rows(), test_share=0.5)
    assert sorted(red(data, "train") + red(data, "test")) == list(range(12))
    (folder / "lists").mkdir()
    before = data.source()
    (folder / "list.csv").rename(folder / "lists/list.csv")
    moved = Manifest(name="list", file=f"{folder}/lists/list.csv", root=str(folder), store_size=5, test_share=0.5)
    assert moved.source() == before
    with pytest.raises(DataError, match=rf"^dataset.file=.*: 12 of 12 files are missing: {folder}/lists/images/0.png,"):
        Manifest(name="list", file=f"{folder}/lists/list.csv").source()


def test_paths_of_windows_and_numbered_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = [{"": n, **row, "path": row["path"].replace("/", "\\")} for n, row in enumerate(rows())]
    data = manifest(folder, listed, test_share=0.5)
    assert len(red(data, "train")) == len(red(data, "test")) == 6
    assert "a column without a name, which numbers the rows, is left out" in capsys.readouterr().out


def test_pictures_that_are_listed_twice(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "copy.png").write_bytes(encoded(0))
    said = {
        "images/0.png": "1 image is there twice, and counts twice: images/0.png (ants) = images/0.png (ants)",
        "copy.png": "warning: 1 image is there twice with unlike labels: images/0.png (ants) = copy.png (bees)",
    }
    for path, line in said.items():
        label = CLASSES[path == "copy.png"]
        manifest(folder, [*rows(), {"path": path, "label": label}], test_share=0.5).source()
        assert line in capsys.readouterr().out
    with pytest.raises(DataError, match=r"images/0\.png is listed as ants and as bees"):
        manifest(folder, [*rows(), {"path": "images/0.png", "label": "bees"}]).source()


def test_bytes_in_parquet(folder: Path) -> None:
    listed = [{"img": encoded(n), "class": n % 2, "part": "test" if n > 7 else "train"} for n in range(12)]
    data = manifest(folder, listed, "parquet", classes=CLASSES)
    assert (red(data, "test"), red(data, "train")) == ([8, 9, 10, 11], list(range(8)))
    before = data.source()
    listed[3]["img"] = encoded(103)
    assert manifest(folder, listed, "parquet", classes=CLASSES).source() != before


@pytest.mark.parametrize(
    ("label", "classes", "names", "numbers"),
    [
        (lambda n: n % 2 + 1, (), ("1", "2"), [0, 1]),
        (lambda n: 7 * (n % 2) + 3, (), ("3", "10"), [0, 1]),
        (lambda n: n % 2 + 1, CLASSES, CLASSES, [0, 1]),
        (lambda n: CLASSES[n % 2], ("wasps", *CLASSES), ("wasps", *CLASSES), [1, 2]),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_labels_of_any_kind(
    label: Any, classes: tuple[str, ...], names: tuple[str, ...], numbers: list[int], kind: str, folder: Path
) -> None:
    raw = manifest(folder, rows(label=label), kind, test_share=1.0, classes=classes).decode()
    assert (raw.classes, raw.test.labels.tolist()) == (names, numbers * 6)


@pytest.mark.parametrize(
    ("listed", "kind", "knobs", "message"),
    [
        (rows(label=lambda n: ["a", "b"]), "jsonl", {}, r"label of row 0 is \['a', 'b'\]: images of several classes"),
        (rows(label=lambda n: str([n % 2, 5])), "csv", {}, r"label of row 0 is \[0, 5\]: images of several classes"),
        (rows(label=lambda n: ["a", "b", "b|a"][n % 3]), "csv", {}, r"label of row 2 is b\|a: images of several"),
        (rows(label=lambda n: None if n == 5 else "a"), "jsonl", {}, "row 5 has no label; leave out rows"),
        (rows(label=""), "csv", {}, "row 0 has no label"),
        (rows(label=0.5), "jsonl", {}, "label of row 0 is 0.5; labels are names or whole numbers"),
        (rows(path="images"), "csv", {}, "images.* and 9 more are no file; correct the paths"),
        (rows(path=""), "csv", {}, "a row has no picture, but ; pictures are bytes, or paths of files"),
        (rows(path="/9j/4AAQSkZJRgABAQAA" * 15), "jsonl", {}, r"300 characters .*AQAA\.{3}\), and there"),
        (rows(path="data:image/png;base64," + "A" * 9978), "jsonl", {}, "10,000 characters .*; pictures themselves"),
        (rows(split=lambda n: n % 3), "csv", {}, "parts are 0, 1, 2; they must be train and test"),
        (rows(split="train"), "csv", {}, "all rows are for training; call the part of others test"),
        (rows(label="a"), "csv", {}, "all images are of class a; there must be two classes or more"),
        ([{"where": "images/0.png", "label": "a"}], "csv", {}, "choose dataset.image_column from where, label"),
        (rows(), "csv", {"label_column": "kind"}, "no such column; choose dataset.label_column from path, label"),
        (rows(), "csv", {"classes": ("ants", "wasps")}, "bees is none of the 2 dataset.classes"),
    ],
)
def test_what_is_no_list_of_labelled_images(
    listed: list[dict[str, Any]], kind: str, knobs: dict[str, Any], message: str, folder: Path
) -> None:
    with pytest.raises(DataError, match=rf"^(dataset.file=|dataset.\w+_column).*{message}") as caught:
        manifest(folder, listed, kind, **knobs).source()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", None, "no such file; name a CSV, JSONL or Parquet file"),
        ("list.jsonl", b"{broken", r"list.jsonl cannot be read as JSON Lines: line 1 \("),
        ("list.jsonl", b"[1]\n", "list.jsonl cannot be read as JSON Lines: line 1 is no object"),
        ("list.parquet", b"PAR1 and no more", "list.parquet cannot be read as Parquet"),
        ("list.csv", b"path,label\n", "list.csv has no rows"),
        ("list.csv", b"", "list.csv"),
    ],
)
def test_damaged_lists_are_one_line(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"^dataset.file={tmp_path}/{name}: {message}") as caught:
        Manifest(name="list", file=str(tmp_path / name)).source()
    assert "\n" not in str(caught.value)


def test_a_name_that_may_be_several_labels_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = ("crane", "tench, Tinca tinca", "crane, machine")
    manifest(folder, rows(label=lambda n: named[n % 3])).source()
    told = capsys.readouterr().out
    assert "warning: 'crane, machine' is a class beside 'crane': is it several labels?" in told
    assert told.count("several labels?") == 1
