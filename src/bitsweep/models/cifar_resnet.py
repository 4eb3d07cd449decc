"""The small residual networks for 32 x 32 images, without parameters in their shortcuts.

He et al., "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), section 4.2, option A.
"""

from typing import TYPE_CHECKING, Annotated, final

from pydantic import AfterValidator

from bitsweep.config.configurable import configurable
from bitsweep.config.model import Model

if TYPE_CHECKING:
    import torch


def _depth(depth: int) -> int:
    if depth < 8 or depth % 6 != 2:
        raise ValueError("should be 6 n + 2 for a whole number n of blocks a stage: 20, 32, 44, 56, 110")
    return depth


@final
@configurable
class CifarResNet(Model):
    """Three stages of 16, 32 and 64 channels.

    Attributes:
        depth: number of layers with weights, 6 n + 2 for n blocks a stage.
    """

    depth: Annotated[int, AfterValidator(_depth)]

    def build(self, num_classes: int) -> "torch.nn.Module":
        """The network; its parameters are named ``conv1``, ``layer1.0.conv1``, ..., ``linear``."""
        import torch
        from torch.nn import functional as F

        class Block(torch.nn.Module):
            def __init__(self, inputs: int, outputs: int) -> None:
                super().__init__()
                self.stride, self.added = outputs // inputs, outputs - inputs
                self.conv1 = torch.nn.Conv2d(inputs, outputs, 3, stride=self.stride, padding=1, bias=False)
                self.bn1 = torch.nn.BatchNorm2d(outputs)
                self.conv2 = torch.nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
                self.bn2 = torch.nn.BatchNorm2d(outputs)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y = F.relu(self.bn1(self.conv1(x)))
                y = self.bn2(self.conv2(y))
                if self.added:
                    x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added // 2, self.added // 2))
                return F.relu(y + x)

        def stage(inputs: int, outputs: int) -> torch.nn.Sequential:
            blocks = (self.depth - 2) // 6
            return torch.nn.Sequential(*(Block(outputs if i else inputs, outputs) for i in range(blocks)))

        class Network(torch.nn.Module):
            def __init__(self, channels: int) -> None:
                super().__init__()
                self.conv1 = torch.nn.Conv2d(channels, 16, 3, padding=1, bias=False)
                self.bn1 = torch.nn.BatchNorm2d(16)
                self.layer1, self.layer2, self.layer3 = stage(16, 16), stage(16, 32), stage(32, 64)
                self.linear = torch.nn.Linear(64, num_classes)
                for module in self.modules():
                    if isinstance(module, torch.nn.Conv2d):
                        torch.nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                x = F.relu(self.bn1(self.conv1(images)))
                x = self.layer3(self.layer2(self.layer1(x)))
                logits: torch.Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
                return logits

        return Network(self.channels)
