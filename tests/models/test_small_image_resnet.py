import torch

from bitsweep.models.small_image_resnet import SmallImageResNet


def test_the_first_stage_sees_the_full_size() -> None:
    network = SmallImageResNet(name="a", builder="resnet18", image_size=32).build(10).eval()
    seen: list[torch.Size] = []
    network.layer1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert seen == [(2, 64, 32, 32)]


def test_the_known_number_of_parameters() -> None:
    """11.17 million with 10 classes: torchvision's 11,689,512 with a 3x3 stem and 990 classes fewer."""
    network = SmallImageResNet(name="a", builder="resnet18", image_size=32).build(10)
    assert sum(value.numel() for value in network.parameters()) == 11_689_512 - (49 - 9) * 3 * 64 - 513 * 990
