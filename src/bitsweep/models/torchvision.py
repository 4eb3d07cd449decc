"""torchvision's own networks."""

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

    def build(self, num_classes: int) -> "torch.nn.Module":
        """The network with ``num_classes`` outputs and random weights.

        Raises:
            ConfigError: torchvision has no such classifier.
        """
        import torchvision

        names = torchvision.models.list_models(module=torchvision.models)
        if self.builder not in names:
            raise ConfigError(f"model.builder={self.builder}: no such classifier; choose from {', '.join(names)}")
        network: torch.nn.Module = torchvision.models.get_model(self.builder, weights=None, num_classes=num_classes)
        return network

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
