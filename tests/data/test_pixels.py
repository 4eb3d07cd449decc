"""Pictures of every mode that Pillow has, against values that are computed by hand or by somebody else."""

import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, UnidentifiedImageError
from torch.nn.functional import interpolate

from bitsweep.data import pixels
from bitsweep.data.network_input import network_input, resize_weights
from bitsweep.data.pixels import (
    StoredForm,
    largest_values,
    read_picture,
    to_rgb,
    white_of,
    why_unreadable,
)
from bitsweep.data.preprocessing import preprocess

RNG = np.random.default_rng(0)
COLOURED = RNG.integers(0, 256, (6, 6, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (6, 6), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (6, 6), dtype=np.uint8)
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]])
CLEAR = np.array([[255, 0, 0], [255, 255, 255], [0, 0, 255], [9, 9, 9]])
DEEP = RNG.integers(0, 1 << 16, (6, 6), dtype=np.uint16)
TWELVE = RNG.integers(0, 1 << 12, (6, 6), dtype=np.uint16)
INK = RNG.integers(0, 256, (6, 6, 4), dtype=np.uint8)


def form(size: int = 6, **knobs: object) -> StoredForm:
    return StoredForm(**{"height": size, "width": size, **knobs})  # type: ignore[arg-type]


def _three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def _on_white(colours: np.ndarray) -> np.ndarray:
    share = ALPHA[..., None] / 255
    return colours * share + 255 * (1 - share)


def _palette(transparent: int | bytes | None = None) -> Image.Image:
    image = Image.fromarray(GREY % 4, mode=None)
    image.putpalette(COLOURS.astype(np.uint8).tobytes())
    if transparent is not None:
        image.info["transparency"] = transparent
    return image


def _with_alpha(mode: str) -> Image.Image:
    if mode == "PA":
        image = Image.merge("PA", [Image.fromarray(GREY % 4), Image.fromarray(ALPHA)])
        image.putpalette(COLOURS.astype(np.uint8).tobytes())
        return image
    whole = Image.fromarray(np.dstack([COLOURED, ALPHA])) if mode.startswith("RGB") else _grey_with_alpha()
    return whole if whole.mode == mode else whole.convert(mode)


def _grey_with_alpha() -> Image.Image:
    return Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])


def _tagged(image: Image.Image, transparent: object) -> Image.Image:
    image.info["transparency"] = transparent
    return image


def _cleared(values: np.ndarray, white: int) -> np.ndarray:
    return np.where(values - values[0, 0], values, white)


def _hsv(rgb: np.ndarray) -> np.ndarray:
    """From hue, saturation and value in bytes, by the formula."""
    import colorsys

    return np.array([[np.multiply(255, colorsys.hsv_to_rgb(*(pixel / 255))) for pixel in row] for row in rgb])


def _ycbcr(luma: np.ndarray) -> np.ndarray:
    """ITU-T T.871."""
    y, cb, cr = np.moveaxis(luma.astype(float), 2, 0)
    colours = y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)
    return np.clip(np.dstack(colours), 0, 255)


def _lab() -> tuple[Image.Image, np.ndarray]:
    """Greys in CIELAB, whose a and b are nothing, and those greys by the formulas of CIELAB and sRGB."""
    lightness = np.linspace(0, 255, 36).reshape(6, 6).round()
    relative = (lightness / 255 * 100 + 16) / 116
    linear = np.where(relative > 6 / 29, relative**3, 3 * (6 / 29) ** 2 * (relative - 4 / 29))
    shown = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    planes = [Image.fromarray(lightness.astype(np.uint8)), *[Image.new("L", (6, 6), 128)] * 2]
    return Image.merge("LAB", planes), _three(255 * shown)


CASES: dict[str, tuple[Image.Image, str, np.ndarray]] = {
    "1": (Image.fromarray(GREY > 99), "png", _three((GREY > 99) * 255)),
    "L": (Image.fromarray(GREY), "png", _three(GREY)),
    "L-clear": (_tagged(Image.fromarray(GREY), int(GREY[0, 0])), "png", _three(_cleared(GREY, 255))),
    "P": (_palette(), "png", COLOURS[GREY % 4]),
    "P-gif": (_palette(), "gif", COLOURS[GREY % 4]),
    "P-clear": (_palette(transparent=1), "png", CLEAR[GREY % 4]),
    "P-bytes": (_palette(transparent=b"\xff\0"), "png", CLEAR[GREY % 4]),
    "RGB": (Image.fromarray(COLOURED), "png", COLOURED),
    "RGB-clear": (
        _tagged(Image.fromarray(COLOURED), tuple(COLOURED[2, 3].tolist())), "png",
        np.where((COLOURED - COLOURED[2, 3]).any(2, keepdims=True), COLOURED, 255),
    ),
    "RGBX": (Image.fromarray(np.dstack([COLOURED, ALPHA]), "RGBX"), "tiff", COLOURED),
    "RGBA": (_with_alpha("RGBA"), "png", _on_white(COLOURED)),
    "RGBA-tiff": (_with_alpha("RGBA"), "tiff", _on_white(COLOURED)),
    "LA": (_with_alpha("LA"), "png", _on_white(_three(GREY))),
    "CMYK": (Image.fromarray(INK, "CMYK"), "tiff", (255.0 - INK[..., :3]) * (255.0 - INK[..., 3:]) / 255),
    "YCbCr": (Image.fromarray(COLOURED, "YCbCr"), "tiff", _ycbcr(COLOURED)),
    "LAB": (_lab()[0], "tiff", _lab()[1]),
    "I": (Image.fromarray(DEEP.astype(np.int32)), "tiff", _three(DEEP / 257)),
    "I;16": (Image.fromarray(DEEP), "png", _three(DEEP / 257)),
    "I;16-tiff": (Image.fromarray(DEEP), "tiff", _three(DEEP / 257)),
    "I;16-clear": (_tagged(Image.fromarray(DEEP), int(DEEP[0, 0])), "png", _three(_cleared(DEEP, 65_535) / 257)),
    "I;16-pgm": (Image.fromarray(DEEP), "ppm", _three(DEEP / 257)),
    "I;16B": (Image.frombytes("I;16B", (6, 6), DEEP.astype(">u2").tobytes()), "tiff", _three(DEEP / 257)),
    "I;16L": (Image.frombytes("I;16L", (6, 6), DEEP.tobytes()), "", _three(DEEP / 257)),
    # No format of files has these.
    "La": (_with_alpha("La"), "", _on_white(_three(GREY))),
    "PA": (_with_alpha("PA"), "", _on_white(COLOURS[GREY % 4])),
    "RGBa": (_with_alpha("RGBa"), "", _on_white(COLOURED)),
    "HSV": (Image.fromarray(COLOURED, "HSV"), "", _hsv(COLOURED)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_mode_becomes_rgb(case: str, tmp_path: Path) -> None:
    image, suffix, expected = CASES[case]
    if suffix:
        image.save(tmp_path / f"image.{suffix}", **image.info)
        result = read_picture(tmp_path / f"image.{suffix}", form())
    else:
        result = np.asarray(to_rgb(image))
    assert (result.dtype, result.shape) == (np.uint8, (6, 6, 3))
    # Premultiplied colours have lost some bits, and so have others with their mode.
    np.testing.assert_allclose(result, expected, atol={"La": 2, "RGBa": 2, "LAB": 2, "HSV": 4}.get(case, 1))


def test_no_mode_of_pillow_is_forgotten() -> None:
    tested = {case.partition("-")[0] for case in CASES}
    assert set(Image.MODES) - tested == {"F", "I;16N"}  # floats are refused; I;16N is one of I;16 and I;16B


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.ones((6, 6), np.float32), "float pixels have no agreed white"),
        (np.full((6, 6), 1 << 20, np.int32), "32-bit pixels have no agreed white"),
        (np.full((6, 6), -3, np.int32), "negative pixels have no agreed black"),
    ],
)
def test_numbers_without_an_agreed_white_are_refused(values: np.ndarray, why: str, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "image.tiff")
    with pytest.raises(ValueError, match=why):
        read_picture(tmp_path / "image.tiff", form())


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_everywhere_is_no_white_picture(mode: str, tmp_path: Path) -> None:
    Image.fromarray(np.dstack([COLOURED, 0 * GREY])).convert(mode).save(tmp_path / "image.png")
    with pytest.raises(ValueError, match="all of it is transparent; save it without transparency"):
        read_picture(tmp_path / "image.png", form())
    assert not read_picture(tmp_path / "image.png", form(channels=4))[..., 3].any()


def test_a_transparent_colour_of_sixteen_bits_is_white(tmp_path: Path) -> None:
    deep_colours(tmp_path / "image.png", 40_000, clear=True)
    with Image.open(tmp_path / "image.png") as opened:
        expected = np.asarray(opened.convert("RGB")).copy()
    expected[0, 0] = 255
    assert np.array_equal(read_picture(tmp_path / "image.png", form(resize=())), expected)
    assert (
        read_picture(tmp_path / "image.png", form(channels=4, resize=()))[..., 3].ravel().tolist() == [0] + [255] * 35
    )


def test_sixteen_bits_keep_their_levels_beside_transparency(tmp_path: Path) -> None:
    clear = int(DEEP[1, 2])
    Image.fromarray(DEEP).save(tmp_path / "image.png", transparency=clear)
    with Image.open(tmp_path / "image.png") as opened:
        assert opened.mode == "I;16" and opened.info["transparency"] == clear
    found = read_picture(tmp_path / "image.png", form(channels=4, resize=()))
    seen = clear != DEEP
    assert np.array_equal(found[..., 3], np.where(seen, 255, 0))
    np.testing.assert_allclose(found[seen][:, :3], _three(DEEP / 65535 * 255)[seen], atol=0.5)
    np.testing.assert_allclose(
        read_picture(tmp_path / "image.png", form(resize=())), _three(np.where(seen, DEEP / 257, 255)), atol=0.5
    )


def tiff(file: Path, data: bytes, tags: dict[int, list[int]]) -> None:
    """A TIFF file of a kind that Pillow does not write: 6 x 6, in the order of bytes of this program."""
    tags = {256: [6], 257: [6], 259: [1], 273: [0], 278: [6], 279: [len(data)]} | tags
    rest, entries = b"", []
    after = 8 + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}H", *values)
        if len(packed) > 4:
            rest, packed = rest + packed, struct.pack("<I", after + len(rest))
        entries.append((tag, len(values), packed.ljust(4, b"\0")))
    start = struct.pack("<I", after + len(rest))
    body = [struct.pack("<HHI", tag, 3, n) + (start if tag == 273 else where) for tag, n, where in entries]
    file.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(body) + b"\0" * 4 + rest + data)


@pytest.mark.parametrize(
    ("values", "tags", "why"),
    [
        (GREY.view(np.int8), {258: [8], 262: [1], 277: [1], 339: [2]}, "negative pixels have no agreed black"),
        (
            np.full((6, 6), 3 << 30, np.uint32),
            {258: [32], 262: [1], 277: [1], 339: [1]},
            "32-bit pixels have no agreed",
        ),
        (np.full((6, 6), 1 << 20, np.uint32), {258: [32], 262: [1], 277: [1]}, "32-bit pixels have no agreed white"),
        (np.full((6, 6), -3, np.int32), {258: [32], 262: [1], 277: [1], 339: [2]}, "negative pixels"),
        (DEEP, {258: [16], 262: [0], 277: [1]}, "0 is white as negatives; save them with 0 as black"),
        (np.stack([DEEP] * 3), {258: [16] * 3, 262: [2], 277: [3], 284: [2]}, "channels that lie apart"),
    ],
)
def test_files_that_pillow_misreads_are_refused(
    values: np.ndarray, tags: dict[int, list[int]], why: str, tmp_path: Path
) -> None:
    tiff(tmp_path / "image.tiff", values.tobytes(), tags)
    with pytest.raises(ValueError, match=why):
        read_picture(tmp_path / "image.tiff", form())
    tiff(tmp_path / "image.tiff", DEEP.tobytes(), {258: [16], 262: [1], 277: [1]})
    np.testing.assert_allclose(read_picture(tmp_path / "image.tiff", form()), _three(DEEP / 65535 * 255), atol=0.5)
    tiff(tmp_path / "image.tiff", DEEP.tobytes(), {258: [16], 262: [1], 277: [1], 339: [3]})
    with pytest.raises(UnidentifiedImageError) as caught:
        read_picture(tmp_path / "image.tiff", form())
    for picture in (tmp_path / "image.tiff", (tmp_path / "image.tiff").read_bytes()):
        assert why_unreadable(picture, caught.value) == "a TIFF of a kind that Pillow cannot read"


@pytest.mark.parametrize("bits", [8, 16])
def test_a_fourth_channel_that_pillow_leaves_out_is_told_to_networks_that_take_it(bits: int, tmp_path: Path) -> None:
    """As that of cameras for near infrared, which is no transparency."""
    values = np.dstack([COLOURED, GREY]).astype(f"u{bits // 8}") * (257 if bits == 16 else 1)
    tiff(tmp_path / "image.tiff", values.tobytes(), {258: [bits] * 4, 262: [2], 277: [4], 338: [0]})
    with pytest.raises(ValueError, match=r"Pillow reads 3 of its 4 channels; dataset=npz takes arrays of all of them"):
        read_picture(tmp_path / "image.tiff", form(channels=4))
    assert np.array_equal(read_picture(tmp_path / "image.tiff", form()), COLOURED)
    tiff(tmp_path / "image.tiff", values.tobytes(), {258: [bits] * 4, 262: [2], 277: [4], 338: [2]})
    assert np.array_equal(read_picture(tmp_path / "image.tiff", form(channels=4)), np.dstack([COLOURED, GREY]))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_twelve_bits_keep_their_levels(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"image.{suffix}"
    Image.fromarray(TWELVE).save(file)
    assert largest_values(file) == (TWELVE.max(), 0)
    result = read_picture(file, form(white=white_of(int(TWELVE.max()))))
    np.testing.assert_allclose(result, _three(TWELVE / 4095 * 255), atol=0.5)
    clipped = read_picture(file, form(white=1023))
    np.testing.assert_allclose(clipped, _three(np.minimum(TWELVE, 1023) / 1023 * 255), atol=0.5)


def test_whites_are_those_of_cameras(tmp_path: Path) -> None:
    found = [white_of(largest) for largest in (0, 200, 256, 4000, 4095, 4096, 20_000, 65_535)]
    assert found == [65_535, 255, 1023, 4095, 4095, 16_383, 65_535, 65_535]
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    Image.fromarray(GREY).save(tmp_path / "grey.jpg")
    (tmp_path / "none.png").write_text("hello")
    assert {largest_values(tmp_path / name) for name in ("grey.png", "grey.jpg", "none.png")} == {(0, 0)}


def deep_colours(file: Path, largest: int, *, clear: bool = False) -> None:
    """A PNG file of colours in 16 bits, which Pillow does not write; the first may be transparent."""
    values = RNG.integers(0, largest + 1, (6, 6, 3)).astype(">u2")
    values[0, 0] = largest
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 6, 6, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    if clear:
        chunks.insert(1, (b"tRNS", values[0, 0].tobytes()))
    packed = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def test_colours_of_sixteen_bits_are_told_from_those_of_eight(tmp_path: Path) -> None:
    for largest, found in ((65_535, 65_535), (4095, 4095), (1000, 1023)):
        deep_colours(tmp_path / "deep.png", largest)
        assert largest_values(tmp_path / "deep.png") == (0, found)
    Image.fromarray(COLOURED).save(tmp_path / "shallow.png")
    assert largest_values(tmp_path / "shallow.png") == (0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "I;16", "1", "LA"])
def test_pictures_are_turned_as_a_viewer_shows_them(orientation: int, mode: str, tmp_path: Path) -> None:
    image = CASES[mode][0]
    shown = np.asarray(to_rgb(image))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    held = image.transpose(undo[orientation]) if orientation > 1 else image
    held.save(tmp_path / "image.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "image.png", form()), shown)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 6)])
def test_the_square_is_the_middle(shape: tuple[int, int], tmp_path: Path) -> None:
    picture = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "image.png")
    top, left = (round((side - 6) / 2) for side in shape)
    assert np.array_equal(read_picture(tmp_path / "image.png", form()), picture[top : top + 6, left : left + 6])
    inner = read_picture(tmp_path / "image.png", form(3, crop=0.5))
    top, left = (round((side - 3) / 2) for side in shape)
    assert np.array_equal(inner, picture[top : top + 3, left : left + 3])


def test_the_middle_has_the_proportions_of_the_form(tmp_path: Path) -> None:
    picture = RNG.integers(0, 256, (10, 20), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "image.png")
    wide = read_picture(tmp_path / "image.png", StoredForm(height=10, width=16, channels=1))
    assert np.array_equal(wide[..., 0], picture[:, 2:18])
    tall = read_picture(tmp_path / "image.png", StoredForm(height=10, width=4, channels=1))
    assert np.array_equal(tall[..., 0], picture[:, 8:12])


def test_real_photographs_are_what_torchvision_makes_of_them(sample_data: Path) -> None:
    from torchvision.transforms import CenterCrop, Compose, Resize

    reference = Compose([Resize(256), CenterCrop(224)])
    for file in sorted((sample_data / "weather" / "Rain").iterdir())[:10]:
        with Image.open(file) as image:
            expected = np.asarray(reference(image.convert("RGB"))).astype(int)
        assert np.abs(read_picture(file, form(224, crop=0.875)) - expected).max() <= 1


def test_a_sliver_needs_little_memory(tmp_path: Path) -> None:
    """Resized before it is cropped it would have 224 x 4,480,000 pixels."""
    Image.new("RGB", (20_000, 1), (1, 2, 3)).save(tmp_path / "image.png")
    assert np.array_equal(np.unique(read_picture(tmp_path / "image.png", form(224))), [1, 2, 3])


def test_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "image.gif", save_all=True, append_images=frames[1:])
    assert (read_picture(tmp_path / "image.gif", form()) == (255, 0, 0)).all()


def test_a_stream_is_as_good_as_a_file() -> None:
    stream = BytesIO()
    Image.fromarray(COLOURED).save(stream, "png")
    assert np.array_equal(read_picture(stream, form()), COLOURED)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([(1, 20), (2, 18)]))
def test_weights_of_resizing_sum_to_one_and_are_short(old: int, new: int, kind: tuple[int, int]) -> None:
    value_bytes, bits = kind
    weights = resize_weights(old, new, value_bytes=value_bytes)
    assert (weights.sum(1) == 1).all()
    assert (weights >= 0).all()
    assert (weights * (1 << bits) % 1 == 0).all()
    if old == new:
        assert np.array_equal(weights, np.eye(old))


@pytest.mark.parametrize(
    ("stored", "kind", "shape"),
    [
        ((24, 24, 3), np.uint8, (3, 9, 9)),
        ((8, 8, 1), np.uint8, (3, 31, 31)),
        ((10, 16, 3), np.uint8, (3, 12, 12)),
        ((20, 12, 1), np.uint8, (1, 20, 12)),
        ((20, 12, 4), np.uint8, (4, 10, 18)),
        ((9, 7, 16), np.uint16, (16, 6, 11)),
    ],
)
@pytest.mark.parametrize("bgr", [False, True])
def test_the_network_sees_the_same_through_numpy_and_torch(
    stored: tuple[int, int, int], kind: type, shape: tuple[int, int, int], bgr: bool
) -> None:
    white = np.iinfo(kind).max
    images = RNG.integers(0, white + 1, (5, *stored), dtype=kind)
    mean, std = np.linspace(0.4, 0.5, stored[2]), np.linspace(0.22, 0.25, stored[2])
    about = {"input_shape": shape, "mean_C": tuple(mean), "std_C": tuple(std), "bgr": bgr}
    seen = network_input(images, **about)  # type: ignore[arg-type]
    assert (seen.dtype, seen.shape, seen.flags.c_contiguous) == (np.float32, (5, *shape), True)
    for layout in (torch.contiguous_format, torch.channels_last):
        planes = preprocess(images, **about, memory_format=layout)  # type: ignore[arg-type]
        assert planes.stride() == torch.empty(planes.shape, memory_format=layout).stride()
        assert np.array_equal(seen, planes)
    planes = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2) / white
    resized = interpolate(planes, shape[1:], mode="bilinear", antialias=True).numpy()[:, :: -1 if bgr else 1]
    expected = (resized - mean.reshape(-1, 1, 1)) / std.reshape(-1, 1, 1)
    assert np.abs(seen - expected).max() < 1e-4


def test_it_needs_nothing_but_numpy_and_pillow(tmp_path: Path) -> None:
    (tmp_path / "pixels.py").write_bytes(Path(pixels.__file__).read_bytes())
    program = "import sys, pixels; print(*sorted({'torch', 'bitsweep', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_lab_is_there() -> None:
    """Pillow may be built without the library that knows it."""
    assert ImageCms.core is not None
