"""What a model declares of the images that it takes."""

import numpy as np
import pytest

from bitsweep.config.binding import construct
from bitsweep.config.model import Model
from bitsweep.data.preprocessing import normalized, preprocess
from bitsweep.data.splits import make_splits
from bitsweep.errors import ConfigError, DataError
from bitsweep.results import RawData, Split

RNG = np.random.default_rng(0)


def model(**knobs: object) -> Model:
    named = {"_target_": "bitsweep.models.plain.PlainNetwork", "name": "plain", "image_size": 6, **knobs}
    made: Model = construct("model", named, Model)
    return made


def images(*shape: int, kind: type = np.uint8) -> RawData:
    train, test = (
        Split(images=RNG.integers(0, np.iinfo(kind).max + 1, (n, *shape), dtype=kind), labels=np.arange(n) % 2)
        for n in (12, 6)
    )
    return RawData(train=train, test=test, classes=("a", "b"))


@pytest.mark.parametrize(
    ("knobs", "what"),
    [
        ({"channels": 0}, "model.channels=0: should be greater than or equal to 1"),
        ({"channels": 17}, "model.channels=17: should be less than or equal to 16"),
        (
            {"image_size": (6, 6, 6)},
            r"model.image_size=\(6, 6, 6\): should be one number of pixels, or \[height,width\]",
        ),
        ({"mean": (0.5,)}, "model.mean, std: give both or none"),
        ({"mean": (0.5, 0.5), "std": (1.0,)}, r"model.mean=\[0.5, 0.5\]: give one number, or one for each of 3"),
        ({"mean": (0.5,), "std": (0.0,)}, "model.std.0=0.0: should be greater than 0"),
        ({"pixel_range": (255, 0)}, r"model.pixel_range=\[255.0, 0.0\]: black must be less than white"),
        ({"pixel_range": (0, 1), "normalization": "centred"}, "model.normalization=centred: does not go with mean"),
        ({"channels": 1, "channel_order": "bgr"}, "model.channel_order=bgr: is for three channels, not 1"),
        ({"channel_order": "grb"}, "model.channel_order=grb: should be 'rgb' or 'bgr'"),
    ],
)
def test_what_no_network_takes_is_refused_in_one_line(knobs: dict[str, object], what: str) -> None:
    with pytest.raises(ConfigError, match=f"^{what}") as caught:
        model(**knobs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("knobs", "formula"),
    [
        ({"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}, lambda x: (x / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]),
        ({"mean": (0.5,), "std": (0.25,)}, lambda x: (x / 255 - 0.5) / 0.25),
        ({"mean": 0.5, "std": 0.25}, lambda x: (x / 255 - 0.5) / 0.25),
        ({"pixel_range": (-1, 1)}, lambda x: x / 127.5 - 1),
        ({"pixel_range": (0, 255)}, lambda x: x),
        (
            {"pixel_range": (0, 255), "mean": (104, 117, 123), "std": (1,), "channel_order": "bgr"},
            lambda x: x[..., ::-1] - [104, 117, 123],
        ),
        ({"normalization": "centred", "channel_order": "bgr"}, lambda x: (x[..., ::-1] - 127) / 128),
        (
            {"normalization": "imagenet", "channels": 3},
            lambda x: (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
        ),
    ],
)
def test_pixels_are_normalised_as_a_script_would(knobs: dict[str, object], formula: object) -> None:
    made = model(**knobs)
    splits = normalized(make_splits(images(6, 6, 3), val_share=0.25, seed=0), made)
    shown = splits.test.images
    seen = preprocess(shown, input_shape=made.input_shape, mean_C=splits.mean_C, std_C=splits.std_C, bgr=splits.bgr)
    expected = formula(shown.astype(np.float64)).transpose(0, 3, 1, 2)  # type: ignore[operator]
    np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize(("stored", "channels", "bgr"), [(1, 3, False), (1, 1, False), (3, 3, True), (16, 16, False)])
def test_normalised_training_images_have_mean_0_and_deviation_1(
    stored: int, channels: int, bgr: bool, kind: type
) -> None:
    made = model(channels=channels, image_size=(6, 4), channel_order="bgr" if bgr else "rgb")
    splits = normalized(make_splits(images(6, 4, stored, kind=kind), val_share=0.25, seed=0), made)
    seen = preprocess(
        splits.train.images, input_shape=made.input_shape, mean_C=splits.mean_C, std_C=splits.std_C, bgr=splits.bgr
    ).double()
    np.testing.assert_allclose(seen.mean((0, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(seen.std((0, 2, 3), correction=0), 1, atol=1e-4)


def test_other_channels_than_the_network_takes_are_one_line() -> None:
    splits = make_splits(images(6, 6, 4), val_share=0.25, seed=0)
    with pytest.raises(DataError, match=r"^model\.channels=3: the images have 4 channels; set model.channels=4"):
        normalized(splits, model())
