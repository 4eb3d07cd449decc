import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from bitsweep.data import picture_tables
from bitsweep.datasets.huggingface import HuggingFace
from bitsweep.errors import DataError
from tests.datasets.test_manifest import CLASSES, encoded

FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": list(CLASSES), "_type": "ClassLabel"},
    "id": {"dtype": "int64", "_type": "Value"},
}


def table(numbers: range, label: Any = lambda n: n % 2) -> pyarrow.Table:
    """Rows as the ``datasets`` package writes them."""
    metadata = {b"huggingface": json.dumps({"info": {"features": FEATURES}}).encode()}
    picture = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("id", pyarrow.int64()), ("image", picture), ("label", pyarrow.int64())], metadata)
    pictures = [{"bytes": encoded(n), "path": f"{n}.png"} for n in numbers]
    return pyarrow.table({"id": list(numbers), "image": pictures, "label": [label(n) for n in numbers]}, schema)


def save(folder: Path, rows: pyarrow.Table) -> None:
    """What ``save_to_disk`` writes of one part, in two files."""
    folder.mkdir(parents=True)
    names = [f"data-0000{number}-of-00002.arrow" for number in range(2)]
    for number, name in enumerate(names):
        with pyarrow.OSFile(str(folder / name), "wb") as sink, pyarrow.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows.slice(4 * number, 4 if not number else None), max_chunksize=3)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))


@pytest.fixture(params=["save_to_disk", "shards", "folders"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Twelve pictures for training, four for testing and two for validation."""
    parts = {"train": table(range(12)), "test": table(range(12, 16)), "validation": table(range(16, 18))}
    for name, rows in parts.items():
        if request.param == "save_to_disk":
            save(tmp_path / name, rows)
        elif request.param == "folders":
            (tmp_path / "default" / name).mkdir(parents=True)
            pyarrow.parquet.write_table(rows, tmp_path / "default" / name / "0000.parquet", row_group_size=3)
        else:
            (tmp_path / "data").mkdir(exist_ok=True)
            for number in range(2):
                part = rows.slice(7 * number, 7 if not number else None)
                pyarrow.parquet.write_table(
                    part, tmp_path / f"data/{name}-0000{number}-of-00002.parquet", row_group_size=3
                )
    if request.param == "save_to_disk":
        (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": list(parts)}))
    return tmp_path


def dataset(root: Path, **knobs: Any) -> HuggingFace:
    return HuggingFace(**{"name": "saved", "root": str(root), "store_size": 5, **knobs})


def test_parts_and_classes_are_those_of_the_data_set(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = dataset(saved).decode()
    assert raw.classes == CLASSES
    assert raw.train.images[np.array([11, 0, 5])][:, 0, 0, 0].tolist() == [11, 0, 5]
    assert raw.test.images[np.arange(4)][:, 0, 0, 0].tolist() == [12, 13, 14, 15]
    assert raw.train.labels.tolist() == [0, 1] * 6
    assert "left out: validation" in capsys.readouterr().out
    other = dataset(saved, test_split="validation").decode()
    assert other.test.images[np.arange(2)][:, 0, 0, 0].tolist() == [16, 17]
    with pytest.raises(DataError, match=r"dataset\.test_split=dev: no such part; choose from t"):
        dataset(saved, test_split="dev").source()


def test_a_data_set_without_parts_is_split(tmp_path: Path) -> None:
    save(tmp_path / "one", table(range(10)))
    raw = dataset(tmp_path / "one", test_share=0.4).decode()
    assert (len(raw.train), len(raw.test)) == (6, 4)


def test_few_parts_are_in_memory_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow.parquet.write_table(table(range(40)), tmp_path / "train.parquet", row_group_size=5)
    read, real = list[int](), pyarrow.parquet.ParquetFile.read_row_group

    def watched(file: Any, group: int, columns: list[str]) -> Any:
        read.append(group)
        return real(file, group, columns)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", watched)
    pictures = picture_tables.read_parquet([tmp_path / "train.parquet"]).pictures("image", tmp_path)
    assert [len(pictures([number])) for number in range(40)] == [1] * 40
    assert read == list(range(8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("hidden labels", r"row 0 has no label; leave out rows without a label"),
        ("no folder", "no such folder; name one that save_to_disk wrote, or one with Parquet files"),
        ("nothing", r"holds neither what save_to_disk writes \(state.json\) nor Parquet files"),
        ("half a file", "train.parquet cannot be read as Parquet"),
        ("unlike files", "files have unlike columns: train.parquet id, image, label, and test.parquet id, image"),
        ("text", "data-00000-of-00002.arrow cannot be read as Arrow"),
    ],
)
def test_what_is_no_data_set_is_one_line(change: str, message: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    rows = table(range(8), (lambda n: -1) if change == "hidden labels" else lambda n: n % 2)
    if change != "no folder":
        root.mkdir()
    if change in ("hidden labels", "half a file", "unlike files"):
        pyarrow.parquet.write_table(rows, root / "train.parquet")
    if change == "half a file":
        (root / "train.parquet").write_bytes((root / "train.parquet").read_bytes()[:700])
    elif change == "unlike files":
        pyarrow.parquet.write_table(rows.select(["id", "image"]), root / "test.parquet")
    elif change == "text":
        root = root / "saved"
        save(root, rows)
        (root / "data-00000-of-00002.arrow").write_text("hello")
    with pytest.raises(DataError, match=rf"^dataset.root={root}: {message}") as caught:
        dataset(root).source()
    assert "\n" not in str(caught.value)
