"""The small network that introductions to quantization start from.

LeCun et al., "Gradient-Based Learning Applied to Document Recognition" (1998), with rectifiers and max pooling.
"""

from typing import TYPE_CHECKING, final

from bitsweep.axes import Model, axis
from bitsweep.errors import ConfigError

if TYPE_CHECKING:
    import torch


@final
@axis
class LeNet(Model):
    """Two 5 x 5 convolutions of 6 and 16 channels, each with a pooling, and linear layers of 120 and 84 outputs.

    Attributes:
        bias: whether layers have one.
    """

    bias: bool = True

    def build(self, num_classes: int) -> "torch.nn.Module":
        """The network; its parameters are named ``conv1``, ``conv2``, ``fc1``, ``fc2``, ``fc3``.

        Raises:
            ConfigError: the images are too small for two convolutions and poolings.
        """
        import torch
        from torch.nn import functional as F

        side = ((self.image_size - 4) // 2 - 4) // 2
        if side < 1:
            raise ConfigError(f"model.image_size={self.image_size}: {self.name} needs at least 16 pixels")

        class Network(torch.nn.Module):
            def __init__(self, bias: bool) -> None:
                super().__init__()
                self.conv1, self.conv2 = torch.nn.Conv2d(3, 6, 5, bias=bias), torch.nn.Conv2d(6, 16, 5, bias=bias)
                self.fc1 = torch.nn.Linear(16 * side * side, 120, bias=bias)
                self.fc2, self.fc3 = torch.nn.Linear(120, 84, bias=bias), torch.nn.Linear(84, num_classes, bias=bias)

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                x = F.max_pool2d(F.relu(self.conv1(images)), 2)
                x = F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1)
                logits: torch.Tensor = self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))
                return logits

        return Network(self.bias)
