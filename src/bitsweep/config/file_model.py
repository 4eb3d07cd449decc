"""The base class of networks that come as files, with their weights."""

from abc import abstractmethod
from typing import Annotated, Any, ClassVar

from pydantic import PlainValidator

from bitsweep.config.configurable import Place, configurable
from bitsweep.config.model import Model, digest_of_file, size_of
from bitsweep.errors import ConfigError
from bitsweep.runtime import fingerprint


def _channels(value: Any) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 16):
        raise ValueError("should be a number from 1 to 16, or null")
    return value


@configurable
class FileModel(Model):
    """A network that is taken as its file has it: no code of it is needed, and it is not trained.

    Attributes:
        file: its path.
        channels, image_size: where the file does not say them; None otherwise.
        kind: of file, for messages.
        is_onnx: whether it is an ONNX file, which engines may take as it is.
    """

    kind: ClassVar[str]
    is_onnx: ClassVar[bool] = False
    has_outputs: ClassVar[bool] = True

    file: Place
    channels: Annotated[Any, PlainValidator(_channels)] = None
    image_size: Annotated[Any, PlainValidator(lambda value: None if value is None else size_of(value))] = None

    @property
    def is_quantized(self) -> bool:
        """Whether some of its tensors are codes."""
        return False

    @property
    def from_file(self) -> bool:
        """Always."""
        return True

    @property
    def original(self) -> "FileModel":
        """The float network that it was quantized from; itself where none is known."""
        return self

    @abstractmethod
    def written_shape(self) -> tuple[int | None, ...]:
        """[N, C, H, W] of the images by the file, None for what it leaves open."""

    def check(self) -> None:
        """Whether there is such a file, and the knobs of the pixels go with the channels that it takes."""
        digest_of_file("model.file", self.file, self.kind)
        if reason := self.against_channels(self.input_shape[0]):
            raise ConfigError(f"model.{reason}")

    def source(self) -> str:
        """What is in the file, and in that of weights to take instead."""
        return fingerprint.digest(digest_of_file("model.file", self.file, self.kind), super().source())

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """What the file says, and for the rest what was set.

        Raises:
            ConfigError: neither says it, or they say different things.
        """
        size = self.image_size
        sides = (size, size) if isinstance(size, int | None) else size
        found = []
        keys = ("channels", "image_size", "image_size")
        for key, written, given in zip(keys, self.written_shape()[1:], (self.channels, *sides), strict=True):
            if written is None and given is None:
                raise ConfigError(f"model.{key}: {self.file} leaves it open; give it, as in model.{key}=VALUE")
            if written is not None and given not in (None, written):
                raise ConfigError(f"model.{key}={getattr(self, key)}: {self.file} takes {written}; leave it out")
            found.append(given if written is None else written)
        channels, height, width = found
        return channels, height, width
