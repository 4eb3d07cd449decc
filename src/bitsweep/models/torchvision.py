"""torchvision's own networks, freshly initialised, with a head that fits the classes."""

from typing import TYPE_CHECKING

from bitsweep.axes import Model, axis
from bitsweep.errors import ConfigError

if TYPE_CHECKING:
    import torch


@axis
class TorchvisionModel(Model):
    """A classifier of torchvision.

    Attributes:
        builder: name of the function in ``torchvision.models``, e.g. ``resnet18``.
    """

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
