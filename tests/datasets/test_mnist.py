import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from bitsweep.datasets.mnist import Mnist, read_idx
from bitsweep.errors import DataError

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(array: np.ndarray) -> bytes:
    """The idx format, after its definition: two zeros, the type, the rank, big-endian sizes, the bytes."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def arrays() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = ((20, 28, 28), (20,), (5, 28, 28), (5,))
    return [rng.integers(0, 10 if len(size) == 1 else 256, size, dtype=np.uint8) for size in sizes]


def dataset(root: Path | str = "", **knobs: object) -> Mnist:
    about = {"name": "small", "variant": "MNIST", "classes": tuple("0123456789"), "md5": ("a", "b", "c", "d")}
    return Mnist(**{**about, "root": str(root), **knobs})  # type: ignore[arg-type]


def put(folder: Path, arrays: list[np.ndarray], *, packed: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(NAMES, arrays, strict=True):
        content = idx(array)
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("below", ["", "MNIST/raw"])
def test_files_are_found_and_read(arrays: list[np.ndarray], tmp_path: Path, packed: bool, below: str) -> None:
    put(tmp_path / below, arrays, packed=packed)
    raw = dataset(tmp_path).decode()
    assert np.array_equal(raw.train.images[..., 0], arrays[0])
    assert np.array_equal(raw.test.labels, arrays[3])
    assert raw.test.labels.dtype == np.int64


def test_a_folder_of_the_system_is_found(arrays: list[np.ndarray], tmp_path: Path, workplace: Path) -> None:
    put(tmp_path / "system", arrays, packed=True)
    found = dataset(system=(str(tmp_path / "elsewhere"), str(tmp_path / "system")))
    assert len(found.decode().train) == 20
    assert found.source() != dataset().source()


@pytest.mark.parametrize("below", ["MNIST/raw", "small/MNIST/raw"])
def test_the_folder_of_all_data_sets_is_looked_through(arrays: list[np.ndarray], tmp_path: Path, below: str) -> None:
    put(tmp_path / below, arrays, packed=True)
    assert len(dataset(folder=str(tmp_path)).decode().train) == 20


def test_the_source_changes_with_the_files(arrays: list[np.ndarray], tmp_path: Path) -> None:
    put(tmp_path, arrays, packed=False)
    before = dataset(tmp_path).source()
    put(tmp_path, [*arrays[:3], arrays[3][::-1]], packed=False)
    assert dataset(tmp_path).source() != before


def test_what_is_to_be_downloaded_has_the_source_of_the_download(workplace: Path) -> None:
    assert dataset().source() == "a b c d"


@pytest.mark.parametrize("knobs", [{"root": "/nowhere"}, {"download": False}])
def test_missing_files_are_named(knobs: dict[str, object], workplace: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.(root=/nowhere|download=false): train-images.* set dataset.root"):
        dataset(**knobs).source()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.gz", gzip.compress(idx(np.zeros((3, 4), np.uint8)))[:-12], "cannot be unpacked"),
        ("a.gz", b"no archive", "cannot be unpacked"),
        ("a", idx(np.zeros((3, 4), np.uint8))[:-1], "has 23 bytes where 24 belong"),
        ("a", b"<html>", "not an idx file"),
        ("a", b"", "not an idx file"),
    ],
    ids=["cut", "not packed", "short", "a page", "empty"],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{tmp_path / name}: {message}"):
        read_idx(tmp_path / name)


def test_images_without_labels_are_refused(arrays: list[np.ndarray], tmp_path: Path) -> None:
    put(tmp_path, [arrays[0], arrays[1][:-1], *arrays[2:]], packed=False)
    with pytest.raises(DataError, match="do not match"):
        dataset(tmp_path).decode()


@pytest.mark.skipif(not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="dataset-fashion-mnist is missing")
def test_the_real_fashion_mnist() -> None:
    raw = dataset(variant="FashionMNIST", system=("/usr/share/datasets/fashion-mnist",)).decode()
    assert (len(raw.train), len(raw.test)) == (60_000, 10_000)
    # The published mean of the training pixels is 0.2860.
    assert raw.train.images.mean() / 255 == pytest.approx(0.2860, abs=1e-4)
    assert np.bincount(raw.test.labels).tolist() == [1000] * 10
