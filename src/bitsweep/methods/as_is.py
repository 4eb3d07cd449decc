"""Nothing is done: the engine gets the file that the network came in, which may be quantized already."""

from typing import TYPE_CHECKING, ClassVar, final

from bitsweep.config.configurable import configurable
from bitsweep.config.method import Method
from bitsweep.config.precision import Precision, Scheme
from bitsweep.results import Compression, Shape, Splits

if TYPE_CHECKING:
    import torch


@final
@configurable
class AsIs(Method):
    """The file as it is. Its reference is what its quantizations mean to PyTorch, with float arithmetic in between."""

    keeps_files: ClassVar[bool] = True

    def unsupported(self, precision: Precision) -> str | None:
        """The file says itself how precise it is."""
        return None

    def compress(
        self, model: "torch.nn.Module", splits: Splits, *, input_shape: Shape, scheme: Scheme, seed: int
    ) -> Compression:
        """Export the network with the quantizations that it has, and record its layers."""
        from bitsweep.quantization.quantized_already import with_its_quantizations

        return with_its_quantizations(model, input_shape=input_shape)
