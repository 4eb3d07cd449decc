"""A network that comes as a file of ``torch.export``."""

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from bitsweep.config.configurable import configurable
from bitsweep.config.file_model import FileModel
from bitsweep.errors import BitsweepError, ConfigError, first_line

if TYPE_CHECKING:
    import torch


@final
@configurable
class ExportedModel(FileModel):
    """A program of ``torch.export``, of a network in evaluation mode, for any number of images or for one number."""

    kind: ClassVar[str] = "what torch.export.save wrote"

    def written_shape(self) -> tuple[int | None, ...]:
        """Every size that is a number in the program; it is read without PyTorch, since planning asks for it."""
        try:
            with zipfile.ZipFile(Path(self.file).expanduser()) as archive:
                (name,) = (each for each in archive.namelist() if each.endswith("/models/model.json"))
                program = json.loads(archive.read(name))["graph_module"]
        except (OSError, zipfile.BadZipFile, ValueError, LookupError) as error:
            raise ConfigError(
                f"model.file={self.file}: is not what torch.export.save wrote; a state_dict is given as model.weights "
                "of its network, and what holds a whole network or TorchScript has to be exported"
            ) from error
        try:
            inputs = [each["user_input"] for each in program["signature"]["input_specs"] if "user_input" in each]
            (images,) = (each["arg"]["as_tensor"]["name"] for each in inputs)
            _, _, _, _ = sizes = program["graph"]["tensor_values"][images]["sizes"]
        except (ValueError, LookupError) as error:
            raise ConfigError(
                f"model.file={self.file}: its program should have one input, images [N, C, H, W]; export it for such"
            ) from error
        return tuple(each.get("as_int") for each in sizes)

    def build(self, num_classes: int) -> "torch.nn.Module":
        """The program, for any number of images.

        Raises:
            ConfigError: it is no such file, holds more than data, or takes something else than images.
        """
        from bitsweep.graphs.any_batch import any_batch

        program = self._program()
        try:
            return any_batch(program)
        except BitsweepError as error:
            raise ConfigError(f"model.file={self.file}: {error}") from error

    def _program(self) -> "torch.export.ExportedProgram":
        from bitsweep.graphs.archive import load_archive

        try:
            program = load_archive(Path(self.file).expanduser())
        except ValueError as error:
            raise ConfigError(f"model.file={self.file}: {error}") from error
        except Exception as error:  # whatever PyTorch's reader says of other files
            raise ConfigError(
                f"model.file={self.file}: this PyTorch cannot read it as a file of torch.export.save; save it again: "
                f"{first_line(error)}"
            ) from error
        inputs = [str(name) for name in program.graph_signature.user_inputs]
        if len(inputs) != 1:
            raise ConfigError(f"model.file={self.file}: one input is needed, the images; it has {', '.join(inputs)}")
        if reason := _unlike_evaluation(program.graph_module, inputs[0]):
            raise ConfigError(f"model.file={self.file}: {reason}")
        return program


def _unlike_evaluation(graph: "torch.fx.GraphModule", images: str) -> str:
    """Why a program is not that of a float32 network in evaluation mode; empty where it is."""
    import torch

    from bitsweep.graphs.ops import aten

    (given,) = (node for node in graph.graph.find_nodes(op="placeholder") if node.name == images)
    if (kind := given.meta["val"].dtype) != torch.float32:
        return f"takes images in {str(kind).removeprefix('torch.')}; export the network in float32, after net.float()"
    learns = {aten.batch_norm.default: 5, aten.dropout.default: 2}
    if any(node.args[learns[node.target]] is True for node in graph.graph.nodes if node.target in learns):
        return (
            "was exported in training mode, where answers depend on chance or on other images; call net.eval() before"
        )
    return ""
