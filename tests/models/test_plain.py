"""Plain networks, against the numbers of parameters that are known or counted by hand."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from bitsweep.config.model import Model
from bitsweep.errors import ConfigError
from bitsweep.models.plain import PlainNetwork

CONF = Path(__file__).parents[2] / "conf"


def model(name: str, *words: str) -> Model:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        made: Model = instantiate(compose("config", [f"model={name}", *words]).model, _convert_="all")
    return made


@pytest.mark.parametrize(
    ("name", "words", "parameters"),
    [
        ("lenet", [], 62_006),
        ("lenet", ["model.bias=false"], 62_006 - 6 - 16 - 120 - 84 - 10),
        ("cnn", [], 448 + 4_640 + 18_496 + 1025 * 512 + 513 * 64 + 65 * 10),
        ("convnet", [], 76 * 32 + 801 * 64 + (64 * 4 + 1) * 512 + 513 * 64 + 65 * 10),
        ("mlp", ["model.image_size=28"], (3 * 784 + 1) * 100 + 101 * 100 + 101 * 10),
    ],
)
def test_the_number_of_parameters(name: str, words: list[str], parameters: int) -> None:
    made = model(name, *words)
    network = made.build(10)
    assert sum(value.numel() for value in network.parameters()) == parameters
    assert network(torch.zeros(2, *made.input_shape)).shape == (2, 10)


def test_dropout_is_before_every_linear_layer() -> None:
    dropped = [module.p for module in model("cnn").build(10).modules() if isinstance(module, torch.nn.Dropout)]
    assert dropped == [0.5, 0.5, 0.5]
    assert not any(
        isinstance(module, torch.nn.Dropout) for module in model("cnn", "model.dropout=0").build(10).modules()
    )


@pytest.mark.parametrize(("image_size", "channels"), [(16, 3), (33, 1), ((96, 64), 16)])
def test_other_sizes(image_size: int | tuple[int, int], channels: int) -> None:
    made = PlainNetwork(name="a", image_size=image_size, channels=channels, filters=(6, 16), kernel=5, hidden=(120, 84))
    assert made.build(4)(torch.zeros(2, *made.input_shape)).shape == (2, 4)


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.image_size=15: too small for convolution 2 of lenet"):
        model("lenet", "model.image_size=15").build(10)
