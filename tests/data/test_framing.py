"""Networks see, pixel for pixel, what their own scripts show them: torchvision's transforms of pictures of Pillow."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import functional as F
from torchvision.transforms import v2

from bitsweep.config.model import Model
from bitsweep.data.framing import framed
from bitsweep.data.pixels import StoredForm, frame_array, read_picture
from bitsweep.results import RawData, Split
from bitsweep.runtime.progress import silent
from bitsweep.stage_work import load_data, train_baseline
from bitsweep.training.trained import load_trained
from tests.config.test_model import model
from tests.test_cell import cell

RNG = np.random.default_rng(0)
BICUBIC, NEAREST = v2.InterpolationMode.BICUBIC, v2.InterpolationMode.NEAREST
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Transform = Callable[[Image.Image], Image.Image]
#: Knobs of a model, and what a script does.
SCRIPTS: dict[str, tuple[dict[str, Any], Transform]] = {
    "bilinear": (
        {"image_size": 64, "resize": 74},
        v2.Compose([v2.Resize(74), v2.CenterCrop(64)]),
    ),
    "bicubic": (
        {"image_size": 50, "resize": 58, "crop": 50, "interpolation": "bicubic"},
        v2.Compose([v2.Resize(58, BICUBIC), v2.CenterCrop(50)]),
    ),
    "enlarged": (
        {"image_size": 200, "resize": 229, "interpolation": "bicubic"},
        v2.Compose([v2.Resize(229, BICUBIC), v2.CenterCrop(200)]),
    ),
    "not square": (
        {"image_size": (96, 64), "resize": (96, 64), "interpolation": "bicubic"},
        v2.Resize((96, 64), BICUBIC),
    ),
    "nearest": ({"image_size": (40, 30), "resize": (40, 30), "interpolation": "nearest"}, v2.Resize((40, 30), NEAREST)),
    "padded": (
        {"image_size": (44, 56), "resize": 40, "pad": (3, 2)},
        v2.Compose([v2.Resize(40), v2.Pad((3, 2)), v2.CenterCrop((44, 56))]),
    ),
    "larger than the picture": ({"image_size": 151, "crop": 151}, v2.CenterCrop(151)),
    "grey": (
        {"image_size": 28, "resize": (28, 28), "channels": 1},
        v2.Compose([v2.Grayscale(), v2.Resize((28, 28))]),
    ),
    "blue first": (
        {"image_size": 48, "resize": 48, "channel_order": "bgr"},
        v2.Compose([v2.Resize(48), v2.CenterCrop(48)]),
    ),
}


def picture(height: int, width: int, *shape: int) -> Image.Image:
    """Smooth and rough at once, so that every filter gives other pixels."""
    rows, columns = np.mgrid[:height, :width, :1][:2] if shape else np.mgrid[:height, :width]
    waves = 127 + 90 * np.sin(rows / 9 + np.arange(shape[0]) if shape else rows / 9) * np.cos(columns / 7)
    return Image.fromarray((waves + RNG.integers(0, 38, (height, width, *shape))).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    made = [picture(90, 121, 3), picture(131, 77, 3), picture(64, 64), picture(50, 300, 3)]
    files = [folder / f"{number}.png" for number in range(len(made))]
    for image, file in zip(made, files, strict=True):
        image.save(file)
    return files


@pytest.fixture(scope="module")
def photographs(sample_data: Path) -> list[Path]:
    return sorted((sample_data / "hymenoptera" / "val" / "ants").glob("*.jpg"))[:3]


def form_of(made: Model) -> StoredForm:
    assert made.framing
    return StoredForm(**vars(made.framing))


def shown(file: Path, script: Transform) -> np.ndarray:
    found = np.asarray(script(Image.open(file).convert("RGB")))
    return found if found.ndim == 3 else found[..., None]


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("files", ["pictures", "photographs"])
def test_pixels_are_those_of_the_script(files: str, name: str, request: pytest.FixtureRequest) -> None:
    knobs, script = SCRIPTS[name]
    form = form_of(model(**knobs))
    for file in request.getfixturevalue(files):
        assert np.array_equal(read_picture(file, form), shown(file, script))


@pytest.mark.parametrize("name", SCRIPTS)
def test_arrays_become_what_pictures_become(name: str, pictures: list[Path]) -> None:
    knobs, script = SCRIPTS[name]
    framing = model(**knobs).framing
    assert framing
    for file in pictures:
        image = np.asarray(Image.open(file).convert("RGB"))
        assert np.array_equal(frame_array(image, framing), shown(file, script))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(31, 23), (150, 170)])
def test_without_antialiasing_as_tensors_are_resized(
    interpolation: str, size: tuple[int, int], pictures: list[Path]
) -> None:
    made = model(image_size=size, resize=size, interpolation=interpolation, antialias=False)
    planes = torch.from_numpy(np.array(Image.open(pictures[0]))).permute(2, 0, 1).float()
    resized = torch.nn.functional.interpolate(planes[None], size, mode=interpolation)[0].round().clamp(0, 255)
    difference = read_picture(pictures[0], form_of(made)) - resized.permute(1, 2, 0).numpy()
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 0.01


def test_deep_channels_are_resized_each_for_itself() -> None:
    image = RNG.integers(0, 65_536, (40, 30, 7), dtype=np.uint16)
    framing = model(image_size=(20, 18), resize=(20, 18), channels=7).framing
    assert framing
    found = frame_array(image, framing)
    assert (found.shape, found.dtype) == ((20, 18, 7), np.uint16)
    planes = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)
    expected = F.resize(planes, [20, 18], antialias=True).permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() <= 1


def test_four_channels_are_those_of_a_picture_with_transparency(tmp_path: Path) -> None:
    picture(40, 40, 4).save(tmp_path / "a.png")
    form = form_of(model(image_size=20, resize=20, channels=4))
    expected = v2.Resize(20)(Image.open(tmp_path / "a.png"))
    assert np.array_equal(read_picture(tmp_path / "a.png", form), np.asarray(expected))


def test_a_picture_has_no_seven_channels() -> None:
    stream = io.BytesIO()
    picture(9, 9).save(stream, "png")
    with pytest.raises(ValueError, match="pictures have 1, 3 or 4 channels, not 7"):
        read_picture(stream, form_of(model(image_size=20, resize=20, channels=7)))


def test_a_network_that_says_nothing_gets_what_the_data_set_stores() -> None:
    assert model(image_size=9).framing is None
    assert model(image_size=(9, 9)).framing is None
    middle = model(image_size=(9, 7)).framing
    assert middle is not None
    assert (middle.height, middle.width, middle.resize) == (9, 7, None)


def test_images_in_arrays_keep_their_size_unless_the_network_says_another() -> None:
    images = RNG.integers(0, 256, (4, 12, 10, 3), dtype=np.uint8)
    split = Split(images=images, labels=np.arange(4) % 2)
    raw = RawData(train=split, test=split, classes=("a", "b"), calibration=images[:2])
    grey = framed(raw, model(image_size=(6, 5), channels=1).framing)
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])[..., None]
    assert np.array_equal(grey.test.images[np.arange(4)], expected)
    assert grey.calibration is not None
    assert grey.calibration.shape == (2, 12, 10, 1)
    bicubic = framed(raw, model(image_size=(6, 5), interpolation="bicubic").framing)
    assert bicubic.train.images[np.arange(3)].shape == (3, 6, 5, 3)
    published = framed(raw, model(image_size=6, resize=7).framing, published=True)
    assert published is raw


@pytest.mark.parametrize("name", ["bicubic", "not square", "grey", "blue first"])
def test_a_network_has_the_logits_of_its_own_script(name: str, pictures: list[Path], tmp_path: Path) -> None:
    """From files to the fp32 baseline: the same logits, and so the same top-1 to the image."""
    knobs, script = SCRIPTS[name]
    for number, file in enumerate(pictures * 3):
        for part in ("train", "test"):
            place = tmp_path / "data" / part / "ab"[number % 2] / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            image = np.asarray(Image.open(file)) ^ np.uint8(number + (part == "test"))
            Image.fromarray(image).save(place)
    channels = knobs.get("channels", 3)
    normalised = {"mean": MEAN, "std": STD} if channels == 3 else {"mean": (0.1307,), "std": (0.3081,)}
    factory = tmp_path / f"nets_{name.replace(' ', '_')}.py"
    factory.write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Conv2d("
        f"{channels}, 8, 5, stride=3), nn.ReLU(), nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Linear(48, 2))\n"
    )
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(channels, 8, 5, stride=3), nn.ReLU(), nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Linear(48, 2)
    )
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    of = cell(
        model="own", train__epochs=0, dataset="image_folder", dataset__root=str(tmp_path / "data"),
        model__factory=f"{factory}:net", model__weights=str(tmp_path / "weights.pt"),
        **{f"model__{key}": value for key, value in (knobs | normalised).items()},
    )  # fmt: skip
    for folder in ("stored", "trained"):
        (tmp_path / folder).mkdir()
    load_data(
        dataset=of.dataset, framing=of.model.framing, published=of.model.framed_by_weights, folder=tmp_path / "stored",
        progress=silent,
    )  # fmt: skip
    train_baseline(
        baseline_model=of.model, train=of.train, seed=0, data=tmp_path / "stored", folder=tmp_path / "trained",
        unfinished=tmp_path / "unfinished", progress=silent,
    )  # fmt: skip

    to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    seen = []
    for file in sorted((tmp_path / "data" / "test").rglob("*.png")):
        planes = to_tensor(script(Image.open(file).convert("RGB")))
        seen.append(v2.Normalize(*normalised.values())(planes.flip(0) if name == "blue first" else planes))
    with torch.inference_mode():
        expected = network.eval()(torch.stack(seen)).numpy()
    found = load_trained(tmp_path / "trained").test_logits_NK
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert np.array_equal(found.argmax(1), expected.argmax(1))
