"""A network that comes as an ONNX file."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from bitsweep.config.configurable import Place, configurable
from bitsweep.config.file_model import FileModel
from bitsweep.config.model import digest_of_file
from bitsweep.errors import BitsweepError, ConfigError
from bitsweep.runtime import fingerprint
from bitsweep.text import some

if TYPE_CHECKING:
    import torch


@final
@configurable
class OnnxModel(FileModel):
    """A graph of one input, images [N, C, H, W] in float, as a network of PyTorch with the weights of the file.

    Attributes:
        float_file: of a quantized file, the float file that it was made from; empty for none.
    """

    kind: ClassVar[str] = "an ONNX file"
    is_onnx: ClassVar[bool] = True

    float_file: Place = ""

    @property
    def is_quantized(self) -> bool:
        """Whether some of its tensors are codes."""
        from bitsweep.graphs.onnx.reading import is_quantized, load_onnx

        with self._named():
            return is_quantized(load_onnx(self._path, tensors=False))

    @property
    def original(self) -> "OnnxModel":
        """The float network that it was quantized from; itself where none is named."""
        return dataclasses.replace(self, file=self.float_file, float_file="") if self.float_file else self

    def check(self) -> None:
        """Whether there are such files, what is in this one is known here, and the output that is named."""
        from bitsweep.graphs.onnx.reading import check_onnx

        super().check()
        with self._named():
            outputs = [each.name for each in check_onnx(self._path).graph.output]
        if str(self.output) not in ("", *outputs, *map(str, range(len(outputs)))):
            raise ConfigError(f"model.output={self.output}: {self.file} has {some(outputs, 9)}: choose one of them")
        if self.float_file:
            digest_of_file("model.float_file", self.float_file, self.kind)

    def source(self) -> str:
        """What is in the file, in those beside it that it keeps its weights in, and in one to take weights from."""
        from bitsweep.graphs.onnx.reading import files_of

        self.check()
        with self._named():
            files = [str(file) for file in files_of(self._path)]
        return fingerprint.digest([digest_of_file("model.file", file, self.kind) for file in files], super().source())

    def written_shape(self) -> tuple[int | None, ...]:
        """Any size may be left open."""
        from bitsweep.graphs.onnx.reading import image_input, load_onnx, shape_of

        with self._named():
            return shape_of(image_input(load_onnx(self._path, tensors=False)))

    def build(self, num_classes: int) -> "torch.nn.Module":
        """The network, for any number of images.

        Raises:
            ConfigError: it is no ONNX file, takes something else than images, or computes what nothing here does.
        """
        from bitsweep.graphs.onnx.checking import require_same
        from bitsweep.graphs.onnx.network import for_any_batch, network_of

        shape = self.input_shape
        with self._named():
            network = for_any_batch(network_of(self._path), shape)
            if not self.is_quantized:  # codes may be rounded one up or down
                require_same(network, self._path, shape=self.written_shape(), images=shape)
            return network

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Errors within say which key names the file."""
        try:
            yield
        except BitsweepError as error:
            raise ConfigError(f"model.file={self.file}: {error}") from error

    @property
    def _path(self) -> Path:
        return Path(self.file).expanduser()
