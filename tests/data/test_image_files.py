from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bitsweep.data import image_files
from bitsweep.data.image_files import ImageFiles, files_in, largest_of
from bitsweep.data.pixels import StoredForm, read_picture
from bitsweep.errors import DataError

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
FORM = StoredForm(height=4, width=4)


def files(folder: Path, count: int) -> ImageFiles:
    names = [f"{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        Image.new("RGB", (8, 5), (number, 0, 0)).save(folder / name)
    return ImageFiles(names=names, take=files_in(folder, names), form=FORM, place=str(folder))


def test_images_come_in_the_order_asked_for(tmp_path: Path) -> None:
    images = files(tmp_path, 30)
    assert (images.shape, images.dtype) == ((30, 4, 4, 3), np.uint8)
    chosen = RNG.permutation(30)[:20]
    assert images[chosen][:, 0, 0, 0].tolist() == chosen.tolist()


def test_all_that_cannot_be_read_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = files(tmp_path, 9)
    photograph = tmp_path / "photograph.jpg"
    Image.fromarray(RNG.integers(0, 256, (50, 50, 3), dtype=np.uint8)).save(photograph)
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "3.png").write_bytes(photograph.read_bytes()[:1000])
    (tmp_path / "4.png").write_bytes(b"")
    (tmp_path / "6.png").write_text("<html>")
    Image.fromarray(np.ones((5, 8), np.float32)).save(tmp_path / "7.png", format="tiff")
    Image.fromarray(np.full((5, 8), 1 << 20, np.int32)).save(tmp_path / "8.png", format="tiff")
    with pytest.raises(DataError) as caught:
        images[np.arange(2)]
    assert str(caught.value).startswith(f"{tmp_path}: 6 of 9 files are not readable as images: 1.png (")
    assert "3.png (image file is truncated" in str(caught.value)
    assert "4.png (empty), 6.png (no image), 7.png (float pixels" in str(caught.value)
    assert str(caught.value).endswith("and 1 more, listed in the log; repair or delete them")
    assert "8.png (32-bit pixels" in capsys.readouterr().out


def test_a_picture_that_would_fill_the_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"3 of 3 files .* decompression bomb"):
        files(tmp_path, 3)[np.arange(1)]


def test_decoding_is_parallel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    together = threading.Barrier(2, timeout=120)

    def waiting(file: Path, form: StoredForm) -> np.ndarray:
        together.wait()
        return read_picture(file, form)

    monkeypatch.setattr(image_files, "read_picture", waiting)
    monkeypatch.setattr(image_files, "physical_cores", lambda: 2)
    assert len(files(tmp_path, 4)[np.arange(4)]) == 4


def test_the_largest_value_of_many_files(tmp_path: Path) -> None:
    images = files(tmp_path, 3)
    blocks = [images.take([0, 1]), images.take([2])]
    assert largest_of(blocks) == largest_of([]) == (0, 0)
    for number, largest in enumerate((300, 4000)):
        Image.fromarray(np.full((5, 8), largest, np.uint16)).save(tmp_path / f"{number}.png")
    assert largest_of(blocks) == (4000, 0)
    assert largest_of([[(tmp_path / "1.png").read_bytes()]]) == (4000, 0)


def test_pictures_may_be_in_memory(tmp_path: Path) -> None:
    images = files(tmp_path, 5)
    held = [(tmp_path / name).read_bytes() for name in images.names]
    in_memory = replace(images, take=lambda numbers: [held[number] for number in numbers])
    chosen = np.array([3, 1])
    assert np.array_equal(in_memory[chosen], images[chosen])
    held[2], held[4] = b"", b"<html>"
    with pytest.raises(
        DataError, match=r"2 of 5 files are not readable as images: 2.png \(empty\), 4.png \(no image\)"
    ):
        in_memory[np.array([2])]
