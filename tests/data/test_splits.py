import errno
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitsweep.data import splits as splits_module
from bitsweep.data.preprocessing import centred, preprocess, preprocessed
from bitsweep.data.sampling import (
    calibration_images,
    sample_of_tests,
    sample_of_validation,
    stratified_share,
    validation_batches,
)
from bitsweep.data.splits import load_splits, make_splits
from bitsweep.errors import DataError
from bitsweep.results import RawData, RawSplit, Split, Splits


def raw(n: int = 40, classes: int = 4, channels: int = 1) -> RawData:
    """Images of which each is unlike every other: its first pixel is its number."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n + 10, 6, 6, channels), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(n + 10)
    labels = np.arange(n + 10) % classes
    train, test = Split(images=images[:n], labels=labels[:n]), Split(images=images[n:], labels=labels[n:])
    return RawData(train=train, test=test, classes=tuple("abcdefghij"[:classes]))


@pytest.fixture
def splits() -> Splits:
    return make_splits(raw(), val_share=0.25, seed=0)


def numbers(split: Split) -> set[int]:
    return set(split.images[:, 0, 0, 0].tolist())


def test_validation_comes_from_training_and_test_is_left_alone(splits: Splits) -> None:
    assert numbers(splits.train) | numbers(splits.val) == set(range(40))
    assert not numbers(splits.train) & numbers(splits.val)
    assert numbers(splits.test) == set(range(40, 50))
    assert np.bincount(splits.val.labels).tolist() == [3, 3, 2, 2]


def test_moments_are_of_the_training_pixels(splits: Splits) -> None:
    pixels = splits.train.images.astype(np.float64) / 255
    assert splits.mean_C == pytest.approx([pixels.mean()])
    assert splits.std_C == pytest.approx([pixels.std()])


def test_calibration_images_are_training_images_of_every_class(splits: Splits) -> None:
    chosen = calibration_images(splits, 8, seed=3)
    assert len(chosen) == 8
    by_number = dict(zip(splits.train.images[:, 0, 0, 0].tolist(), splits.train.labels.tolist(), strict=True))
    assert sorted(by_number[int(image[0, 0, 0])] for image in chosen) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert not np.array_equal(chosen, calibration_images(splits, 8, seed=4))
    assert len(calibration_images(splits, 1000, seed=0)) == len(splits.train)


def test_a_sample_of_the_test_images_has_every_class(splits: Splits) -> None:
    labels = np.asarray(splits.test.labels)
    chosen = sample_of_tests(splits, len(labels) // 2)
    assert np.array_equal(chosen, np.unique(chosen)) and len(chosen) == len(labels) // 2
    assert (np.abs(np.bincount(labels[chosen]) - np.bincount(labels) / 2) < 1).all()
    assert np.array_equal(sample_of_tests(splits, 10**6), np.arange(len(labels)))
    assert np.array_equal(sample_of_validation(splits, 10**6), np.arange(len(splits.val)))
    nothing = Split(images=splits.train.images[:0], labels=splits.train.labels[:0])
    assert len(sample_of_validation(replace(splits, train=nothing), 10**6)) == 0


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0, 1), st.integers(0, 9))
def test_every_class_has_its_share(labels: list[int], share: float, seed: int) -> None:
    array = np.array(labels)
    chosen = stratified_share(array, share, seed)
    assert len(set(chosen.tolist())) == len(chosen) == round(share * len(labels))
    for label in set(labels):
        assert abs((array[chosen] == label).sum() - len(chosen) * labels.count(label) / len(labels)) < 1


def test_without_training_images_some_test_images_are_held_out(tmp_path: Path) -> None:
    """Of which accuracy is not measured then; of classes with one image each the loser is drawn."""
    few = raw(n=0, classes=10)
    lost = set()
    for seed in range(8):
        splits = make_splits(few, val_share=0.1, seed=seed)
        assert (len(splits.train), len(splits.val), len(splits.test)) == (0, 1, 9)
        assert numbers(splits.val) | numbers(splits.test) == set(range(10))
        assert splits.calibration_source == "images held out from the test images"
        assert np.array_equal(calibration_images(splits, 5, seed=0), splits.val.images)
        lost |= numbers(splits.val)
    assert len(lost) > 3
    pixels = splits.val.images / 255
    assert splits.mean_C == pytest.approx([pixels.mean()])
    make_splits(few, val_share=0.1, seed=7, folder=tmp_path)
    loaded = load_splits(tmp_path)
    assert loaded.fingerprint == splits.fingerprint
    assert loaded.val.images[:].tolist() == splits.probe_images[:].tolist() == splits.val.images[:].tolist()


@pytest.mark.parametrize("n", [0, 40])
def test_images_given_for_calibration(n: int, tmp_path: Path) -> None:
    given = np.random.default_rng(1).integers(0, 256, (7, 6, 6, 1), dtype=np.uint8)
    data = replace(raw(n=n, classes=4), calibration=given)
    splits = make_splits(data, val_share=0.25, seed=0, folder=tmp_path)
    loaded = load_splits(tmp_path)
    assert [len(each) for each in (loaded.train, loaded.val, loaded.test)] == ([30, 10, 10] if n else [0, 0, 10])
    assert loaded.calibration_source == "images of dataset.calibration"
    assert {image.tobytes() for image in calibration_images(loaded, 100, seed=0)} == {
        image.tobytes() for image in given
    }
    assert loaded.fingerprint == splits.fingerprint != make_splits(raw(n=n), val_share=0.25, seed=0).fingerprint
    assert len(loaded.probe_images) == (10 if n else 7)
    if not n:
        with pytest.raises(DataError, match="no labelled images beside the test images"):
            list(validation_batches(loaded, 4, input_shape=(3, 6, 6), seed=0))


def test_saved_splits_come_back(splits: Splits, tmp_path: Path) -> None:
    make_splits(raw(), val_share=0.25, seed=0, folder=tmp_path)
    loaded = load_splits(tmp_path)
    assert loaded.fingerprint == splits.fingerprint
    assert (loaded.classes, loaded.mean_C, loaded.std_C) == (splits.classes, splits.mean_C, splits.std_C)
    assert np.array_equal(loaded.val.images[:], splits.val.images[:])


def test_a_full_disk_is_noticed_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=50 * 36 - 1))
    with pytest.raises(OSError) as caught:
        make_splits(raw(), val_share=0.25, seed=0, folder=tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_images_are_asked_for_a_block_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that data beyond the memory can be decoded into the store."""
    data, asked = raw(), list[int]()

    class Watched:
        shape, dtype = data.train.images.shape, data.train.images.dtype

        def __getitem__(self, chosen: np.ndarray) -> np.ndarray:
            asked.append(len(chosen))
            return data.train.images[chosen]

    monkeypatch.setattr(splits_module, "_BLOCK_BYTES", 7 * 36)
    watched = replace(data, train=RawSplit(images=Watched(), labels=data.train.labels))
    written = make_splits(watched, val_share=0.25, seed=0, folder=tmp_path)
    assert (max(asked), sum(asked)) == (7, 40)
    assert written.fingerprint == make_splits(data, val_share=0.25, seed=0).fingerprint


@pytest.mark.parametrize("damage", ["change a pixel", "truncate", "delete"])
def test_damaged_splits_are_noticed(tmp_path: Path, damage: str) -> None:
    make_splits(raw(), val_share=0.25, seed=0, folder=tmp_path)
    file = tmp_path / "test_images.npy"
    content = bytearray(file.read_bytes())
    if damage == "delete":
        file.unlink()
    else:
        content[-1] ^= 1
        file.write_bytes(content if damage == "change a pixel" else content[:-10])
    with pytest.raises(DataError, match="delete the folder"):
        load_splits(tmp_path).test.images[:]


def test_another_seed_is_another_fingerprint(splits: Splits) -> None:
    assert make_splits(raw(), val_share=0.25, seed=1).fingerprint != splits.fingerprint
    assert make_splits(raw(), val_share=0.25, seed=0).fingerprint == splits.fingerprint


def _with(images: np.ndarray | None = None, labels: np.ndarray | None = None) -> RawData:
    good = raw()
    train = Split(
        images=good.train.images if images is None else images, labels=good.train.labels if labels is None else labels
    )
    return RawData(train=train, test=good.test, classes=good.classes)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_with(images=np.zeros((40, 6, 6, 1), np.float32)), "must be uint8"),
        (_with(images=np.zeros((40, 6, 6, 17), np.uint8)), "must be uint8"),
        (_with(images=np.zeros((40, 6, 6, 1), np.uint8)), "one colour"),
        (_with(labels=np.arange(39)), "must be int64 .40."),
        (_with(labels=np.arange(40)), "labels run from 0 to 39, but there are 4 classes"),
        (
            replace(raw(), test=RawSplit(images=np.zeros((0, 6, 6, 1), np.uint8), labels=np.zeros(0, np.int64))),
            "no test",
        ),
        (
            replace(raw(n=0), test=Split(images=raw().test.images[:1], labels=np.zeros(1, np.int64))),
            "too few to hold out",
        ),
        (_with(images=np.zeros((1, 6, 6, 1), np.uint8), labels=np.zeros(1, np.int64)), "too few to hold out"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_unusable_data_is_explained(data: RawData, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_splits(data, val_share=0.25, seed=0)


def test_preprocessing_against_the_formula() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    mean_C, std_C = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = ((images / 255 - mean_C) / std_C).transpose(0, 3, 1, 2)
    result = preprocess(images, input_shape=(3, 4, 4), mean_C=mean_C, std_C=std_C)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_grey_images_fill_three_channels_of_the_size_asked_for() -> None:
    images = np.full((2, 4, 4, 1), 51, np.uint8)
    result = preprocess(images, input_shape=(3, 7, 7), mean_C=(0.1,), std_C=(0.5,))
    assert result.shape == (2, 3, 7, 7)
    torch.testing.assert_close(result, torch.full((2, 3, 7, 7), 0.2))


def test_shrinking_averages() -> None:
    """Antialiased: a fine checkerboard becomes grey and not black or white."""
    board = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)[None, :, :, None]
    inner = preprocess(board, input_shape=(3, 8, 8), mean_C=(0.0,), std_C=(1.0,))[..., 1:-1, 1:-1]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5), rtol=0, atol=0.02)


def test_batches_are_the_whole_in_order(splits: Splits) -> None:
    parts = list(preprocessed(splits.train.images, splits, input_shape=(3, 6, 6), batch=7))
    whole = preprocess(splits.train.images, input_shape=(3, 6, 6), mean_C=splits.mean_C, std_C=splits.std_C)
    assert [len(part) for part in parts] == [7, 7, 7, 7, 2]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_centred_pixels_against_the_formula(channels: int) -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(channels, axis=3)
    splits = centred(make_splits(raw(channels=channels), val_share=0.25, seed=0))
    seen = preprocess(images, input_shape=(3, 16, 16), mean_C=splits.mean_C, std_C=splits.std_C)
    np.testing.assert_allclose(seen[0, 0].flatten(), (np.arange(256) - 127) / 128, atol=1e-6)
