import gzip
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
            "floats": LABELS[count].astype(float),
            "names": np.array(["0", "1", "2"])[LABELS[count]],
        }
        return images, shapes[labels]

    names = ("x_train", "y_train", "x_test", "y_test")
    if convention == "medmnist":
        names = ("train_images", "train_labels", "test_images", "test_labels")
    np.savez(folder / "data.npz", **dict(zip(names, (*made(12), *made(4)), strict=True)))
    return Npz(name="npz", root=str(folder / "data.npz"))


@pytest.mark.parametrize("convention", ["keras", "medmnist"])
@pytest.mark.parametrize("labels", ["flat", "column", "one-hot", "floats", "names"])
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


@pytest.mark.parametrize("damage", ["missing", "truncated", "text", "other keys", "float labels", "empty", "a bit"])
def test_bad_archives_are_one_clear_line(damage: str, tmp_path: Path) -> None:
    dataset = archive(tmp_path)
    file = Path(dataset.root)
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(content[:500])
    elif damage == "text":
        file.write_text("hello")
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "a bit":
        file.write_bytes(content[:900] + bytes([content[900] ^ 1]) + content[901:])
    elif damage == "other keys":
        np.savez(file, images=IMAGES[4])
    else:
        np.savez(file, x_train=IMAGES[12], y_train=LABELS[12] / 2, x_test=IMAGES[4], y_test=LABELS[4])
    with pytest.raises(DataError, match=r"^dataset\.root=") as caught:
        dataset.source()
    assert "\n" not in str(caught.value)


def test_images_may_have_more_channels_than_rows(tmp_path: Path) -> None:
    images = np.arange(16 * 5 * 8 * 9, dtype=np.uint16).reshape(16, 5, 8, 9)
    raw = saved(tmp_path, x_train=images[4:], x_test=images[:4]).decode()
    assert np.array_equal(raw.train.images, images[4:])
    with pytest.raises(DataError, match=r"x_test is uint16 \[4, 3, 8, 9\]; .* which come last"):
        saved(tmp_path, x_train=images[4:, :3], x_test=images[:4, :3]).decode()


PLAIN = {"x_train": IMAGES[12], "y_train": LABELS[12], "x_test": IMAGES[4], "y_test": LABELS[4]}
SEVERAL = np.tile(np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]]), (4, 1))


def saved(folder: Path, knobs: dict[str, Any] | None = None, **changed: np.ndarray) -> Npz:
    np.savez(folder / "data.npz", **PLAIN | changed)
    return Npz(name="npz", root=str(folder / "data.npz"), **knobs or {})


def encrypted(file: Path) -> None:
    """A file whose members say that a password is needed, as those of encrypted archives do."""
    np.savez(file, **PLAIN)
    content = bytearray(file.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.find(mark)
        while place >= 0:
            content[place + flags] |= 1
            place = content.find(mark, place + 1)
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "write", "what"),
    [
        ("x.npz", encrypted, r"cannot be read as an \.npz archive \(.* is encrypted, password required"),
        ("x.npz.gz", lambda file: file.write_bytes(gzip.compress(b"PK")), "is gzipped: unpack it with gunzip"),
        ("x.npy", lambda file: np.save(file, IMAGES[4]), r"is a single array \(\.npy\): save images and labels"),
        ("x.pkl", lambda file: file.write_bytes(pickle.dumps([1])), "is a pickle, which could run code"),
        ("x.npz", lambda file: np.savez(file, **PLAIN | {"y_test": np.array([0, 1, None, 2])}), "Python objects"),
    ],
)
def test_other_files_are_named_and_never_unpickled(
    name: str, write: Callable[[Path], None], what: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(DataError, match=what) as caught:
        Npz(name="npz", root=str(tmp_path / name)).source()
    assert "allow_pickle" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "knobs", "what"),
    [
        ({"y_train": LABELS[12] * 0, "y_test": LABELS[4] * 0}, {}, "all images are of class 0; there must be two"),
        ({"y_train": LABELS[12] - 1, "y_test": LABELS[4] - 1}, {}, "labels run from -1 to 1; they must not be"),
        ({}, {"classes": ("a", "b")}, "labels run from 0 to 2, but dataset.classes has 2 names"),
        ({"x_test": IMAGES[4][..., :1]}, {}, "training and test images are 8x8x3 and 8x8x1; they must be of one size"),
        ({"x_test": IMAGES[4][:, :7]}, {}, "training and test images are 8x8x3 and 7x8x3"),
        ({"x_train": IMAGES[12].transpose(0, 3, 1, 2)}, {}, r"x_train is uint8 \[12, 3, 8, 8\]; it must be"),
        ({"x_train": IMAGES[12].astype(np.uint16)}, {}, "training images are uint16, test images uint8; they must be"),
        ({"x_train": IMAGES[12] / 255}, {}, r"x_train is float64 \[12, 8, 8, 3\]; it must be uint8"),
        ({"y_train": SEVERAL}, {}, r"y_train has the shape \[12, 3\] and not one 1 in every row: images of several"),
        ({"y_train": LABELS[12][:9]}, {}, r"y_train has the shape \[9\], for 12 images"),
        ({"y_train": LABELS[12].reshape(12, 1, 1).repeat(2, 2)}, {}, ".*labels must be"),
        ({"x_test": IMAGES[12][:4]}, {}, "4 of 4 test images are training images too; remove them, or set"),
        ({"x_train": IMAGES[12][:0], "y_train": LABELS[12][:0]}, {}, "x_train holds no images"),
    ],
)  # fmt: skip
def test_what_is_no_classification_is_refused_while_planning(
    changed: dict[str, np.ndarray], knobs: dict[str, Any], what: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"^dataset\.root=.*: {what}") as caught:
        saved(tmp_path, knobs, **changed).source()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "knobs", "classes", "what"),
    [
        ({"y_train": LABELS[12] + 1, "y_test": LABELS[4] + 1}, {}, ("1", "2", "3"), "run from 1 to 3 with 3 values"),
        ({"y_train": LABELS[12] * 5, "y_test": LABELS[4] * 5}, {}, ("0", "5", "10"), "run from 0 to 10 with 3 values"),
        (
            {"y_train": LABELS[12] + 1, "y_test": LABELS[4] + 1}, {"classes": ("a", "b", "c")}, ("a", "b", "c"),
            "labels count from 1: 1 is a",
        ),
        ({"x_test": IMAGES[12][:4]}, {"leaks": "keep"}, ("0", "1", "2"), "warning: 4 of 4 test images are training"),
        ({"x_test": IMAGES[4] // 128}, {}, ("0", "1", "2"), "that of test images 1: are both on one scale?"),
        ({"x_train": IMAGES[12] * 0}, {}, ("0", "1", "2"), "largest value of training images is 0, that of"),
        (
            {"x_train": IMAGES[12][:, :, :5], "x_test": IMAGES[4][:, :, :5]}, {}, ("0", "1", "2"),
            "images are 8 x 5 with 3 channels, as model.image_size=[8,5] takes them",
        ),
        (
            {"x_train": IMAGES[12][..., [0, 1, 2, 0]], "x_test": IMAGES[4][..., [0, 1, 2, 0]]}, {}, ("0", "1", "2"),
            "images are 8 x 8 with 4 channels, as model.image_size=8 model.channels=4 takes them",
        ),
        ({"x_val": IMAGES[4]}, {}, ("0", "1", "2"), "left out: x_val; validation images are held out from training"),
        ({"y_train": np.eye(3, dtype=bool)[LABELS[12]]}, {}, ("0", "1", "2"), ""),
    ],
)  # fmt: skip
def test_what_is_unusual_is_told_while_planning(
    changed: dict[str, np.ndarray], knobs: dict[str, Any], classes: tuple[str, ...], what: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = saved(tmp_path, knobs, **changed)
    data.source()
    said = capsys.readouterr().out
    assert what in said
    assert bool(what) == bool(said)
    raw = data.decode()
    assert raw.classes == classes
    assert raw.train.labels.tolist() == LABELS[12].tolist()
    assert raw.test.labels.tolist() == LABELS[4].tolist()


def test_real_images(sample_data: Path) -> None:
    raw = Npz(name="npz", root=str(sample_data / "cifar10" / "cifar10.npz")).decode()
    assert raw.train.images.shape == (5000, 32, 32, 3)
    assert len(raw.test) == 1000
    assert len(raw.classes) == 10


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"y_train": LABELS[12] % 2}, "too few training and test images: 2 has 0 and 1; each class needs two"),
        ({"y_test": LABELS[4] % 2}, "too few training and test images: 2 has 4 and 0"),
        ({"y_train": np.arange(12) % 11}, "too few training and test images: 1 has 1 and 1, "),
    ],
)
def test_too_few_images_to_train_on(changed: dict[str, np.ndarray], what: str, tmp_path: Path) -> None:
    archive = saved(tmp_path, **changed)
    archive.source()
    assert archive.lacks()["training"].startswith(f"dataset.root={archive.root}: {what}")
    assert not saved(tmp_path).lacks()


def test_test_images_alone_with_images_for_calibration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "data.npz", x_test=IMAGES[4], y_test=LABELS[4])
    alone = Npz(name="npz", root=str(tmp_path / "data.npz"), classes=("a", "b", "c", "d"))
    raw = alone.decode()
    assert (len(raw.train), raw.calibration, raw.classes) == (0, None, ("a", "b", "c", "d"))
    assert raw.test.labels.tolist() == LABELS[4].tolist()
    assert set(alone.lacks()) == {"training"}
    np.save(tmp_path / "some.npy", IMAGES[12])
    assert (
        "1 of 4 test images is held out to choose ranges on, by dataset.val_share=0.1; to test all"
        in capsys.readouterr().out
    )
    given = Npz(name="npz", root=alone.root, calibration=str(tmp_path / "some.npy"))
    assert np.array_equal(given.decode().calibration, IMAGES[12])
    assert "held out" not in capsys.readouterr().out
    assert set(given.lacks()) == {"training", "validation"}
    assert given.source() != alone.source()


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (IMAGES[12][:, :7], r"holds uint8 \[12, 7, 8, 3\]; there must be images uint8 \[N, 8, 8, 3\]"),
        (IMAGES[4], "4 of 4 test images are calibration images too; remove them, or set dataset.leaks=keep"),
        (None, "no such file; name an .npy or .npz file with images"),
        (b"hello", "cannot be read as an array of NumPy"),
    ],
)
def test_images_for_calibration_that_are_none(array: np.ndarray | bytes | None, what: str, tmp_path: Path) -> None:
    archive = saved(tmp_path, {"calibration": str(tmp_path / "some.npy")})
    if isinstance(array, bytes):
        (tmp_path / "some.npy").write_bytes(array)
    elif array is not None:
        np.save(tmp_path / "some.npy", array)
    with pytest.raises(DataError, match=what) as caught:
        archive.source()
    assert "\n" not in str(caught.value)


def member(shape: str) -> bytes:
    """An array of NumPy that says it has a shape, and has nothing."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("y_test.npy", b"hello", "y_test is no array"),
        ("y_test", b"\x93NUMPY", "holds y_test twice"),
        ("x_test.npy", member("(9000000, 9000000)"), r"does not fit the memory, or is damaged \("),
        ("x_test.npy", member("(99999999999999999999, 8)"), r"cannot be read as an \.npz archive \("),
        ("x_test.npy", member("(-4, 8, 8)"), r"cannot be read as an \.npz archive \("),
        ("x_test.npy", member("(4, 8, 8)" + " " * 20_000), r"cannot be read as an \.npz archive \("),
        ("", b"#!/bin/sh\n", "has something before the arrays: save them again"),
    ],
)
def test_members_that_are_no_arrays_are_named(name: str, content: bytes, what: str, tmp_path: Path) -> None:
    file = Path(saved(tmp_path).root)
    with zipfile.ZipFile(file) as packed:
        members = {each: packed.read(each) for each in packed.namelist()}
    with zipfile.ZipFile(file, "w") as packed:
        for each, array in (members | ({name: content} if name else {})).items():
            packed.writestr(each, array)
    if not name:
        file.write_bytes(content + file.read_bytes())
    with pytest.raises(DataError, match=rf"^dataset\.root=.*data\.npz: {what}") as caught:
        Npz(name="npz", root=str(file)).source()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"y_train": LABELS[12] * 1e300}, r"y_train: labels are up to 2e\+300; they must be below 2\^53"),
        ({"y_test": LABELS[4].astype(np.uint64) + 2**63}, r"y_test: labels are up to 9.22\S+; they must be below"),
        ({"y_test": np.array([0, 1, np.inf, 2])}, "y_test: labels are up to inf"),
    ],
)
def test_labels_that_floats_do_not_tell_apart_are_refused(
    changed: dict[str, np.ndarray], what: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=what):
        saved(tmp_path, **changed).source()


def test_keys_of_two_conventions_are_refused(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "data.npz", x_train=IMAGES[12], y_train=LABELS[12], test_images=IMAGES[4], test_labels=LABELS[4]
    )
    with pytest.raises(DataError, match="has x_train, y_train beside test_images, test_labels: name all of them in on"):
        Npz(name="npz", root=str(tmp_path / "data.npz")).source()


@pytest.mark.parametrize("deep", [False, True])
def test_images_that_are_nearly_black_are_told(deep: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = {"x_train": IMAGES[12], "x_test": IMAGES[4]}
    saved(tmp_path, **parts).source()
    assert not capsys.readouterr().out
    dark = {name: images.astype(np.uint16) * 16 if deep else images // 9 for name, images in parts.items()}
    saved(tmp_path, **dark).source()
    white = 65535 if deep else 255
    assert f"and white is {white}: they are nearly black to a network; multiply them" in capsys.readouterr().out
