"""Plain networks, as introductions to the subject use them: convolutions one after the other, then linear layers."""

import math
from typing import TYPE_CHECKING, Annotated, final

from pydantic import Field

from bitsweep.config.configurable import Count, Several, configurable
from bitsweep.config.model import Model
from bitsweep.errors import ConfigError

if TYPE_CHECKING:
    import torch


@final
@configurable
class PlainNetwork(Model):
    """Convolutions with ReLU and perhaps max pooling, hidden linear layers with ReLU and perhaps dropout, and a head.

    Attributes:
        filters: of each convolution, its output channels; none for a perceptron.
        kernel, stride, padding: of all convolutions.
        pool: window and stride of the max pooling after each convolution; 1 for none.
        hidden: outputs of the linear layers before the last.
        dropout: share of inputs of linear layers that is dropped in training.
        bias: whether layers have one.
    """

    filters: Several[Count] = ()
    kernel: Count = 3
    stride: Count = 1
    padding: Annotated[int, Field(ge=0)] = 0
    pool: Count = 2
    hidden: Several[Count] = ()
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    bias: bool = True

    def build(self, num_classes: int) -> "torch.nn.Module":
        """The network; its layers are named ``conv1``, ``conv2`` and so on, and ``fc1``, ``fc2`` and so on.

        Raises:
            ConfigError: the images are too small for the convolutions.
        """
        from collections import OrderedDict

        from torch import nn

        layers: OrderedDict[str, nn.Module] = OrderedDict()
        width, *sides = self.input_shape
        for number, filters in enumerate(self.filters, 1):
            sides = [((side + 2 * self.padding - self.kernel) // self.stride + 1) // self.pool for side in sides]
            if min(sides) < 1:
                raise ConfigError(
                    f"model.image_size={self.image_size}: too small for convolution {number} of {self.name}; enlarge it"
                )
            layers[f"conv{number}"] = nn.Conv2d(
                width, filters, self.kernel, stride=self.stride, padding=self.padding, bias=self.bias
            )
            layers[f"relu{number}"] = nn.ReLU()
            if self.pool > 1:
                layers[f"pool{number}"] = nn.MaxPool2d(self.pool)
            width = filters
        layers["flatten"] = nn.Flatten()
        width *= math.prod(sides)
        for number, outputs in enumerate((*self.hidden, num_classes), 1):
            if self.dropout:
                layers[f"dropout{number}"] = nn.Dropout(self.dropout)
            layers[f"fc{number}"] = nn.Linear(width, outputs, bias=self.bias)
            if number <= len(self.hidden):
                layers[f"fc_relu{number}"] = nn.ReLU()
            width = outputs
        return nn.Sequential(layers)
