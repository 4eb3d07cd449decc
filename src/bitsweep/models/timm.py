"""Any classifier of PyTorch Image Models."""

import functools
import importlib.util
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from bitsweep.config.configurable import configurable
from bitsweep.config.model import Model
from bitsweep.data.pixels import Framing
from bitsweep.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from bitsweep.errors import ConfigError, first_line, one_line

if TYPE_CHECKING:
    import torch


@final
@configurable
class TimmModel(Model):
    """A classifier of timm.

    Attributes:
        architecture: its name in ``timm.list_models()``, e.g. ``resnet10t``, perhaps with that of its weights after a
            dot, e.g. ``resnet10t.c3_in1k``.
    """

    package: ClassVar[str] = "timm"
    extra: ClassVar[str] = "timm"
    weights_package: ClassVar[str] = "timm"
    weights_extra: ClassVar[str] = "timm"

    architecture: str

    def check(self) -> None:
        """Whether timm's source names such a classifier, which is seen without importing it."""
        name, _, tag = self.architecture.partition(".")
        known = name and re.search(rf"""^def {re.escape(name)}\(|["']{re.escape(name)}["']""", _source(), re.MULTILINE)
        # Names of weights may be put together there.
        if not known or not re.search(rf"\b{re.escape(tag)}\b", _source()):
            raise ConfigError(
                f"model.architecture={self.architecture}: no such classifier in timm; `timm.list_models()` lists them"
            )

    def build(self, num_classes: int) -> "torch.nn.Module":
        """The network with ``num_classes`` outputs and random weights.

        Raises:
            ConfigError: timm has no such classifier.
        """
        import timm

        about = self._config()
        of_one_size = about is not None and about.fixed_input_size
        size = {"img_size": self.input_shape[1:]} if of_one_size else {}
        network: torch.nn.Module = timm.create_model(
            self.architecture, num_classes=num_classes, in_chans=self.channels, **size
        )
        return network

    def imagenet_state(self) -> "dict[str, torch.Tensor]":
        """The weights, downloaded into the cache of the Hugging Face hub if they are not there.

        Raises:
            ConfigError: there are none, or they can be neither downloaded nor read.
        """
        import timm

        if not self._about().has_weights:
            raise ConfigError(f"model.architecture={self.architecture}: timm has no weights; use model.weights=''")
        try:
            state: dict[str, torch.Tensor] = timm.create_model(self.architecture, pretrained=True).state_dict()
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"model.weights=imagenet: the download of {self.architecture} failed ({one_line(error)}); connect "
                "to the internet, or set model.weights to a state_dict file"
            ) from error
        return state

    def imagenet_pixels(self) -> Literal["imagenet", "published"]:
        """What timm says of the weights."""
        about = self._about()
        usual = (tuple(about.mean), tuple(about.std)) == (IMAGENET_MEAN, IMAGENET_STD)
        return "imagenet" if usual else "published"

    def published_moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """What timm says of the weights."""
        about = self._about()
        return tuple(about.mean), tuple(about.std)

    def published_framing(self) -> Framing | None:
        """What timm's own evaluation does."""
        about = self._about()
        channels, height, width = about.input_size
        usual = about.crop_mode == "center" and about.interpolation in ("bilinear", "bicubic", "nearest")
        if not usual or channels != 3 or height != width:
            return None
        return Framing(
            height=height, width=width, resize=(math.floor(height / about.crop_pct),), interpolation=about.interpolation
        )

    def _check(self) -> None:
        import timm

        if not timm.is_model(self.architecture):
            close = timm.list_models(f"*{self.architecture}*")[:5] or timm.list_models("resnet*")[:5]
            raise ConfigError(
                f"model.architecture={self.architecture}: no such classifier in timm; choose for instance from "
                f"{', '.join(close)}"
            )

    def _about(self) -> Any:
        """What timm says of the weights."""
        if (config := self._config()) is None:
            raise ConfigError(
                f"model.architecture={self.architecture}: timm knows no weights by this name; `timm.list_pretrained()` "
                "lists those that it has"
            )
        return config

    def _config(self) -> Any:
        """The same; None for a name of old, and for a classifier that was never trained."""
        import timm

        self._check()
        try:
            return timm.models.get_pretrained_cfg(self.architecture)
        except RuntimeError as error:
            raise ConfigError(f"model.architecture={self.architecture}: {first_line(error)}") from error


@functools.cache
def _source() -> str:
    """All that timm says of its networks."""
    package = importlib.util.find_spec("timm")
    assert package is not None and package.submodule_search_locations
    files = Path(package.submodule_search_locations[0], "models").glob("*.py")
    return "\n".join(file.read_text() for file in files)
