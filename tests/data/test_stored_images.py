from pathlib import Path

import numpy as np
import pytest

from bitsweep.data import stored_images
from bitsweep.data.stored_images import Checks, StoredImages
from bitsweep.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (11, 4, 5, 3), dtype=np.uint8)


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoredImages:
    """Eleven images in blocks of three."""
    monkeypatch.setattr(stored_images, "_BLOCK_BYTES", 3 * 60 + 7)
    np.save(tmp_path / "images.npy", IMAGES)
    checks = Checks(IMAGES)
    for start, end in ((0, 1), (1, 8), (8, 11)):
        checks.add(IMAGES[start:end])
    return StoredImages(tmp_path / "images.npy", checks.finish())


def test_they_are_used_like_an_array(stored: StoredImages) -> None:
    assert (stored.shape, stored.dtype, stored.nbytes, len(stored)) == (IMAGES.shape, np.uint8, IMAGES.nbytes, 11)
    for chosen in (slice(2, 9, 2), slice(None), slice(3, 3), np.array([9, 0, 0]), np.array([-1]), np.arange(0)):
        assert np.array_equal(stored[chosen], IMAGES[chosen])
    assert np.array_equal(np.asarray(stored), IMAGES)


@pytest.mark.parametrize("portion", [1, 2, 3, 7, 11])
def test_checks_do_not_depend_on_portions(portion: int, stored: StoredImages) -> None:
    checks = Checks(IMAGES)
    for start in range(0, len(IMAGES), portion):
        checks.add(IMAGES[start : start + portion])
    assert np.array_equal(checks.finish(), stored._checks)
    assert stored._checks.shape == (4, 32)


def test_a_damaged_block_is_noticed_when_it_is_read_and_no_other_is(stored: StoredImages, tmp_path: Path) -> None:
    content = bytearray((tmp_path / "images.npy").read_bytes())
    content[-4 * 60] ^= 1  # in image 7
    (tmp_path / "images.npy").write_bytes(content)
    damaged = StoredImages(tmp_path / "images.npy", stored._checks)
    assert np.array_equal(damaged[np.array([0, 5, 10])], IMAGES[[0, 5, 10]])
    for chosen in (np.array([6]), np.array([0, 8]), slice(None)):
        with pytest.raises(DataError, match=r"image 6 or one of the next 2 is not what was written.*delete the folder"):
            damaged[chosen]


def test_a_block_is_checked_once(stored: StoredImages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        stored_images, "_digest", lambda block, real=stored_images._digest: seen.append(1) or real(block)
    )
    seen: list[int] = []
    for _ in range(3):
        stored[np.array([0, 1, 4])]
    assert len(seen) == 2
    stored[:]
    stored[:]
    assert len(seen) == 4


def test_a_file_of_another_length(stored: StoredImages, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES[:5])
    with pytest.raises(ValueError, match="another number of images"):
        StoredImages(tmp_path / "images.npy", stored._checks)
