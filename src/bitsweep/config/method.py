"""The base class of compression methods."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from bitsweep.config.configurable import Choice, configurable
from bitsweep.config.dataset import Part
from bitsweep.config.precision import Precision, Scheme

if TYPE_CHECKING:
    import torch

    from bitsweep.results import Compression, Shape, Splits


@configurable
class Method(Choice, ABC):
    """A way to make a trained network smaller: chooses ranges and codes, and returns a Q/DQ program.

    Attributes:
        compresses_float: whether it changes a network that stays in fp32.
        keeps_files: whether engines get the file that the network came in.
        makes_files: whether engines get an ONNX file that it makes, in formats that it chooses.
        package, extra: distribution of the tool that does it, and the extra of this project that installs it.
    """

    compresses_float: ClassVar[bool] = False
    keeps_files: ClassVar[bool] = False
    makes_files: ClassVar[bool] = False
    package: ClassVar[str] = "torch"
    extra: ClassVar[str] = ""

    @property
    def hands_over_files(self) -> bool:
        """Whether engines get an ONNX file as it is, instead of a program."""
        return self.keeps_files or self.makes_files

    @abstractmethod
    def unsupported(self, precision: Precision) -> str | None:
        """Why this method cannot express a precision, with the hint; None when it can."""

    @property
    def layers_named(self) -> tuple[str, ...]:
        """Names of layers in its setting ``keep``, which the network must have."""
        return ()

    def learns_from(self) -> Part | None:
        """The labelled images that it cannot do without."""
        return None

    def takes_exported(self, scheme: Scheme) -> bool:
        """Whether it starts from what the network was exported to, so that this is done once; else from the network."""
        return False

    def calibrated_on(self, available: int, scheme: Scheme) -> int:
        """How many of so many calibration images it watches to choose codes and ranges."""
        return 0

    @abstractmethod
    def compress(
        self, model: "torch.nn.Module", splits: "Splits", *, input_shape: "Shape", scheme: Scheme, seed: int
    ) -> "Compression":
        """Compress a trained network in evaluation mode, which may be changed in place.

        Returns:
            The exported program with a dynamic batch, float32 images [N, 3, H, W] to float32 logits [N, K],
            and a record of each layer.

        Raises:
            BitsweepError: the network cannot be compressed, for instance because a weight is not finite.
        """
