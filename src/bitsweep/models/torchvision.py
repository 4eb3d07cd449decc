"""torchvision's own networks."""

import difflib
import functools
import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from bitsweep.config.configurable import configurable
from bitsweep.config.model import Model
from bitsweep.errors import ConfigError

if TYPE_CHECKING:
    import torch


@configurable
class TorchvisionModel(Model):
    """A classifier of torchvision.

    Attributes:
        builder: name of the function in ``torchvision.models``, e.g. ``resnet18``.
    """

    weights_package: ClassVar[str] = "torchvision"

    builder: str

    def check(self) -> None:
        """Whether torchvision has such a classifier."""
        if self.builder not in (names := _classifiers()):
            close = difflib.get_close_matches(self.builder, names, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(f"model.builder={self.builder}: no such classifier; {hint}choose from {', '.join(names)}")

    def build(self, num_classes: int) -> "torch.nn.Module":
        """The network with ``num_classes`` outputs and random weights.

        Raises:
            ConfigError: torchvision has no such classifier.
        """
        import torchvision

        self.check()
        network: torch.nn.Module = torchvision.models.get_model(self.builder, weights=None, num_classes=num_classes)
        return take_channels(network, self.channels)

    def imagenet_state(self) -> "dict[str, torch.Tensor]":
        """torchvision's default weights, downloaded into the cache of ``torch.hub`` if they are not there.

        Raises:
            ConfigError: they can be neither downloaded nor read.
        """
        import torch
        import torchvision

        try:
            network: torch.nn.Module = torchvision.models.get_model(self.builder, weights="DEFAULT", progress=False)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            url = torchvision.models.get_model_weights(self.builder).DEFAULT.url
            raise ConfigError(
                f"model.weights=imagenet: {url} could not be downloaded and read ({reason}); connect to the internet, "
                f"or put it into {torch.hub.get_dir()}/checkpoints"
            ) from error
        return network.state_dict()


def take_channels(network: "torch.nn.Module", channels: int) -> "torch.nn.Module":
    """Let a network take images of so many channels: its first convolution gets other random weights, if need be."""
    import torch

    stem = next(each for each in network.modules() if isinstance(each, torch.nn.Conv2d))
    if channels != stem.in_channels:
        stem.in_channels = channels
        stem.weight = torch.nn.Parameter(torch.empty(stem.out_channels, channels, *stem.kernel_size))
        torch.nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    return network


@functools.cache
def _classifiers() -> list[str]:
    """Names of torchvision's builders, from its source: importing it takes a second, planning must not."""
    package = importlib.util.find_spec("torchvision")
    assert package is not None and package.submodule_search_locations
    files = sorted(Path(package.submodule_search_locations[0], "models").glob("*.py"))
    found = (re.findall(r"@register_model\(\)\n(?:@.*?\n)*def (\w+)\(", file.read_text(), re.DOTALL) for file in files)
    return sorted(name for names in found for name in names)
