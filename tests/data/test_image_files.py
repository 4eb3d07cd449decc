from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bitsweep.data import image_files
from bitsweep.data.image_files import ImageFiles, read_square
from bitsweep.errors import DataError

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
COLOURED = RNG.integers(0, 256, (6, 6, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (6, 6), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (6, 6), dtype=np.uint8)


def _three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def _on_white(colours: np.ndarray) -> np.ndarray:
    share = ALPHA[..., None] / 255
    return colours * share + 255 * (1 - share)


def _palette(transparent: int | None = None) -> Image.Image:
    image = Image.fromarray(GREY % 4, mode=None)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    if transparent is not None:
        image.info["transparency"] = transparent
    return image


COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]])
CLEAR = np.array([[255, 0, 0], [255, 255, 255], [0, 0, 255], [9, 9, 9]])
DEEP = RNG.integers(0, 1 << 16, (6, 6), dtype=np.uint16)
INK = RNG.integers(0, 256, (6, 6, 4), dtype=np.uint8)


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        (Image.fromarray(COLOURED), "png", COLOURED),
        (Image.fromarray(GREY), "png", _three(GREY)),
        (Image.fromarray(GREY > 99), "png", _three((GREY > 99) * 255)),
        (_palette(), "png", COLOURS[GREY % 4]),
        (_palette(), "gif", COLOURS[GREY % 4]),
        (_palette(transparent=1), "png", CLEAR[GREY % 4]),
        (Image.fromarray(np.dstack([COLOURED, ALPHA])), "png", _on_white(COLOURED)),
        (Image.fromarray(np.dstack([GREY, ALPHA]), "LA"), "png", _on_white(_three(GREY))),
        (Image.fromarray(DEEP), "png", _three(np.rint(DEEP / 257))),
        (Image.fromarray(DEEP), "tiff", _three(np.rint(DEEP / 257))),
        (Image.fromarray(INK, "CMYK"), "tiff", (255.0 - INK[..., :3]) * (255.0 - INK[..., 3:]) / 255),
    ],
    ids=["RGB", "L", "1", "P", "gif", "P-clear", "RGBA", "LA", "I;16", "I;16-tiff", "CMYK"],
)  # fmt: skip
def test_every_kind_of_pixels_becomes_rgb(
    image: Image.Image, suffix: str, expected: np.ndarray, tmp_path: Path
) -> None:
    file = tmp_path / f"image.{suffix}"
    image.save(file)
    result = read_square(file, size=6)
    assert (result.dtype, result.shape) == (np.uint8, (6, 6, 3))
    np.testing.assert_allclose(result, expected, atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_a_viewer_shows_them(orientation: int, tmp_path: Path) -> None:
    shown = COLOURED
    # How the camera held it: the inverse of what the tag asks for.
    held = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.swapaxes(0, 1),
        6: np.rot90(shown),
        7: shown[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(shown, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(held)).save(tmp_path / "image.png", exif=exif)
    assert np.array_equal(read_square(tmp_path / "image.png", size=6), shown)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 6)])
def test_the_square_is_the_middle(shape: tuple[int, int], tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    top, left = (round((side - 6) / 2) for side in shape)
    assert np.array_equal(read_square(tmp_path / "image.png", size=6), pixels[top : top + 6, left : left + 6])
    inner = read_square(tmp_path / "image.png", size=3, crop=0.5)
    top, left = (round((side - 3) / 2) for side in shape)
    assert np.array_equal(inner, pixels[top : top + 3, left : left + 3])


def test_real_photographs_are_what_torchvision_makes_of_them(sample_data: Path) -> None:
    from torchvision.transforms import CenterCrop, Compose, Resize

    reference = Compose([Resize(256), CenterCrop(224)])
    for file in sorted((sample_data / "weather" / "Rain").iterdir())[:10]:
        with Image.open(file) as image:
            expected = np.asarray(reference(image.convert("RGB"))).astype(int)
        assert np.abs(read_square(file, size=224, crop=0.875) - expected).max() <= 1


def test_a_sliver_needs_little_memory(tmp_path: Path) -> None:
    """Resized before it is cropped it would have 224 x 4,480,000 pixels."""
    Image.new("RGB", (20_000, 1), (1, 2, 3)).save(tmp_path / "image.png")
    assert np.array_equal(np.unique(read_square(tmp_path / "image.png", size=224)), [1, 2, 3])


def test_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "image.gif", save_all=True, append_images=frames[1:])
    assert (read_square(tmp_path / "image.gif", size=6) == (255, 0, 0)).all()


def files(folder: Path, count: int) -> ImageFiles:
    names = [f"{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        Image.new("RGB", (8, 5), (number, 0, 0)).save(folder / name)
    return ImageFiles(folder=folder, names=names, size=4, crop=1.0)


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

    together = threading.Barrier(2, timeout=10)
    read = read_square

    def waiting(file: Path, *, size: int, crop: float) -> np.ndarray:
        together.wait()
        return read(file, size=size, crop=crop)

    monkeypatch.setattr(image_files, "read_square", waiting)
    monkeypatch.setattr(image_files, "physical_cores", lambda: 2)
    assert len(files(tmp_path, 4)[np.arange(4)]) == 4
