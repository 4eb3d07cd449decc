import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitsweep.datasets.cifar import Cifar
from bitsweep.errors import DataError


def batch(count: int, key: str) -> dict[str, Any]:
    """As in the published files: a row an image, all red, then all green, then all blue pixels."""
    return {"data": np.arange(count * 3072, dtype=np.int64).astype(np.uint8).reshape(count, 3072), key: [1] * count}


def files(folder: Path) -> Path:
    root = folder / "cifar-10-batches-py"
    root.mkdir()
    for number in range(1, 6):
        (root / f"data_batch_{number}").write_bytes(pickle.dumps(batch(3, "labels"), protocol=2))
    (root / "test_batch").write_bytes(pickle.dumps(batch(2, "labels"), protocol=2))
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat", "dog"]}, protocol=2))
    return root


def test_batches_are_joined_and_turned(tmp_path: Path) -> None:
    files(tmp_path)
    raw = Cifar(name="cifar10", variant="CIFAR10", root=str(tmp_path)).decode()
    assert raw.train.images.shape == (15, 32, 32, 3)
    assert raw.test.images.shape == (2, 32, 32, 3)
    rows = batch(2, "labels")["data"]
    assert raw.test.images[1, 5, 7].tolist() == [rows[1, channel * 1024 + 5 * 32 + 7] for channel in range(3)]
    assert raw.classes == ("cat", "dog")


@pytest.mark.parametrize("below", ["", "cifar10"])
def test_the_folder_of_all_data_sets_is_looked_through(tmp_path: Path, below: str) -> None:
    cifar = Cifar(name="cifar10", variant="CIFAR10", folder=str(tmp_path))
    published = cifar.source()
    (tmp_path / below).mkdir(exist_ok=True)
    images = np.arange(6 * 3072).astype(np.uint8).reshape(6, 32, 32, 3)
    arrays = {"x_train": images[:4], "y_train": np.arange(4), "x_test": images[4:], "y_test": np.arange(2)}
    np.savez(tmp_path / below / "cifar10.npz", **arrays)
    assert cifar.source() != published
    raw = cifar.decode()
    assert np.array_equal(raw.test.images, images[4:])
    assert raw.classes == ("0", "1", "2", "3")
    files(tmp_path / below)
    assert cifar.source() == published
    assert len(cifar.decode().train) == 15


def test_cifar100(tmp_path: Path) -> None:
    names = {"fine_label_names": ["a", "b"]}
    for name, content in (("train", batch(3, "fine_labels")), ("test", batch(1, "fine_labels")), ("meta", names)):
        (tmp_path / name).write_bytes(pickle.dumps(content))
    raw = Cifar(name="cifar100", variant="CIFAR100", root=str(tmp_path)).decode()
    assert (len(raw.train), len(raw.test), raw.classes) == (3, 1, ("a", "b"))


def test_a_batch_cannot_run_code(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "harm"),)

    (files(tmp_path) / "test_batch").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(DataError, match="test_batch: cannot be read"):
        Cifar(name="cifar10", variant="CIFAR10", root=str(tmp_path)).decode()
    assert not (tmp_path / "harm").exists()


def test_truncated_and_missing_files(tmp_path: Path) -> None:
    root = files(tmp_path)
    (root / "data_batch_2").write_bytes((root / "data_batch_2").read_bytes()[:100])
    with pytest.raises(DataError, match="data_batch_2: cannot be read"):
        Cifar(name="cifar10", variant="CIFAR10", root=str(tmp_path)).decode()
    (root / "data_batch_2").unlink()
    with pytest.raises(DataError, match=r"dataset\.root="):
        Cifar(name="cifar10", variant="CIFAR10", root=str(tmp_path)).source()
    with pytest.raises(DataError, match=r"dataset\.download=false"):
        Cifar(name="cifar10", variant="CIFAR10", download=False).source()
