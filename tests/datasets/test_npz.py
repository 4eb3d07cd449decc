from pathlib import Path

import numpy as np
import pytest

from bitsweep.datasets.npz import Npz
from bitsweep.errors import DataError

RNG = np.random.default_rng(0)
IMAGES = {count: RNG.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8) for count in (12, 4)}
LABELS = {count: np.arange(count) % 3 for count in (12, 4)}


def archive(folder: Path, *, convention: str = "keras", grey: bool = False, labels: str = "flat") -> Npz:
    def made(count: int) -> tuple[np.ndarray, np.ndarray]:
        images = IMAGES[count][..., 0] if grey else IMAGES[count]
        shapes = {
            "flat": LABELS[count],
            "column": LABELS[count][:, None],
            "one-hot": np.eye(3, dtype=int)[LABELS[count]],
        }
        return images, shapes[labels]

    names = ("x_train", "y_train", "x_test", "y_test")
    if convention == "medmnist":
        names = ("train_images", "train_labels", "test_images", "test_labels")
    np.savez(folder / "data.npz", **dict(zip(names, (*made(12), *made(4)), strict=True)))
    return Npz(name="npz", root=str(folder / "data.npz"))


@pytest.mark.parametrize("convention", ["keras", "medmnist"])
@pytest.mark.parametrize("labels", ["flat", "column", "one-hot"])
@pytest.mark.parametrize("grey", [False, True])
def test_conventions(convention: str, labels: str, grey: bool, tmp_path: Path) -> None:
    raw = archive(tmp_path, convention=convention, labels=labels, grey=grey).decode()
    expected = IMAGES[12][..., :1] if grey else IMAGES[12]
    assert np.array_equal(raw.train.images, expected)
    assert raw.test.labels.tolist() == LABELS[4].tolist()
    assert raw.classes == ("0", "1", "2")


def test_the_source_is_the_content(tmp_path: Path) -> None:
    first = archive(tmp_path).source()
    assert archive(tmp_path, grey=True).source() != first


@pytest.mark.parametrize("damage", ["missing", "truncated", "text", "other keys", "float labels"])
def test_bad_archives_are_one_clear_line(damage: str, tmp_path: Path) -> None:
    dataset = archive(tmp_path)
    file = Path(dataset.root)
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:500])
    elif damage == "text":
        file.write_text("hello")
    elif damage == "other keys":
        np.savez(file, images=IMAGES[4])
    else:
        np.savez(file, x_train=IMAGES[12], y_train=LABELS[12] / 2, x_test=IMAGES[4], y_test=LABELS[4])
    with pytest.raises(DataError, match=r"^dataset\.root=") as caught:
        dataset.decode()
    assert "\n" not in str(caught.value)


def test_real_images(sample_data: Path) -> None:
    raw = Npz(name="npz", root=str(sample_data / "cifar10" / "cifar10.npz")).decode()
    assert raw.train.images.shape == (5000, 32, 32, 3)
    assert len(raw.test) == 1000
    assert len(raw.classes) == 10
