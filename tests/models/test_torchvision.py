import pytest
import torch

from bitsweep.errors import ConfigError
from bitsweep.models.torchvision import TorchvisionModel


@pytest.mark.parametrize(
    ("builder", "image_size", "parameters"),
    # Parameters of the published networks, less those of 1,000 classes, plus those of 7.
    [("resnet18", 32, 11_689_512 - 513 * 993), ("mobilenet_v3_small", 64, 2_542_856 - 1025 * 993)],
)
def test_the_head_fits_the_classes(builder: str, image_size: int, parameters: int) -> None:
    network = TorchvisionModel(name="a", builder=builder, image_size=image_size).build(7)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert network.eval()(torch.zeros(2, 3, image_size, image_size)).shape == (2, 7)


@pytest.mark.parametrize("builder", ["resnet19", "raft_large", "__file__"])
def test_an_unknown_builder_is_named(builder: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.builder={builder}: no such classifier; choose from alexnet"):
        TorchvisionModel(name="a", builder=builder, image_size=32).build(10)
