"""torchvision's ResNets with a stem for small images, as CIFAR is commonly trained on."""

from typing import TYPE_CHECKING, Literal, final

from bitsweep.config.configurable import configurable
from bitsweep.config.model import Model

if TYPE_CHECKING:
    import torch


@final
@configurable
class SmallImageResNet(Model):
    """A ResNet whose stem is a 3x3 convolution of stride 1 without max pooling (He et al., arXiv 1512.03385).

    Images of 32 pixels reach the first stage at full size, instead of at 8 pixels.

    Attributes:
        builder: name of the function in ``torchvision.models``.
    """

    builder: Literal["resnet18", "resnet34", "resnet50"]

    def build(self, num_classes: int) -> "torch.nn.Module":
        """The network with random weights; its parameters are named as torchvision's."""
        import torch
        import torchvision

        network: torch.nn.Module = torchvision.models.get_model(self.builder, weights=None, num_classes=num_classes)
        stem = torch.nn.Conv2d(self.channels, 64, 3, padding=1, bias=False)
        torch.nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        network.conv1, network.maxpool = stem, torch.nn.Identity()
        return network
