import pytest
import torch

from bitsweep.errors import ConfigError
from bitsweep.models.lenet import LeNet


@pytest.mark.parametrize(("bias", "parameters"), [(True, 62_006), (False, 62_006 - 6 - 16 - 120 - 84 - 10)])
def test_the_known_number_of_parameters(bias: bool, parameters: int) -> None:
    network = LeNet(name="lenet", image_size=32, bias=bias).build(10)
    assert sum(value.numel() for value in network.parameters()) == parameters
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("image_size", [16, 28, 33])
def test_other_sizes(image_size: int) -> None:
    network = LeNet(name="lenet", image_size=image_size).build(4)
    assert network(torch.zeros(2, 3, image_size, image_size)).shape == (2, 4)


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.image_size=15: lenet needs at least 16 pixels"):
        LeNet(name="lenet", image_size=15).build(10)
