"""Whether a network that came in as an ONNX file computes what ONNX Runtime does of the file."""

from pathlib import Path
from typing import Any

import torch
from onnx import TensorProto
from torch import nn
from torch.utils._pytree import tree_leaves

from bitsweep.errors import ConfigError, one_line
from bitsweep.graphs.faithful import differ
from bitsweep.graphs.onnx.conventions import has_channels_last, softmax_of_outputs
from bitsweep.graphs.onnx.reading import load_onnx
from bitsweep.text import say

_IMAGES = 2
#: Differences, relative to all values: of networks in float32, and of those in half precision, which ONNX Runtime
#: computes in it, and the network in float32.
_TOLERANCE, _TOLERANCE_OF_HALVES = 1e-3, 0.05


def require_same(
    network: nn.Module, path: Path, *, shape: tuple[int | None, ...], images: tuple[int, int, int]
) -> None:
    """Refuse a network that is another one than its file. A file that ONNX Runtime does not run is taken as it is,
    and a line says so.

    Args:
        shape: [N, C, H, W] of the images in the file, None where it leaves a size open.
        images: C, H and W of the images.

    Raises:
        ConfigError: it is another one.
    """
    try:
        import onnxruntime
    except ImportError:
        return
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    given = torch.randn(shape[0] or _IMAGES, *images, generator=torch.Generator().manual_seed(0))
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        written = load_onnx(path, tensors=False, as_written=True)
        (taken,) = session.get_inputs()
        images_of_file = given.permute(0, 2, 3, 1) if has_channels_last(taken.shape) else given
        meant = session.run(None, {taken.name: images_of_file.numpy()})
    except Exception as error:  # whatever it says of files that it does not run
        say(f"{path}: ONNX Runtime does not run it ({one_line(error)}), so that the network was not compared with it")
        return
    with torch.no_grad():
        found = tree_leaves(network.eval()(given))
    probabilities = softmax_of_outputs(written)
    found = [
        values.flatten(1).softmax(1).view_as(values) if output.name in probabilities else values
        for output, values in zip(written.graph.output, found, strict=True)
    ]
    tolerance = _TOLERANCE_OF_HALVES if _in_halves(written) else _TOLERANCE
    if differ([torch.as_tensor(each) for each in meant], found, tolerance=tolerance):
        raise ConfigError(
            "nothing here computes what ONNX Runtime does of it: some operation has a meaning that is not known; "
            "export it with other operators, or as model=exported"
        )


def _in_halves(model: Any) -> bool:
    """Whether some of its weights have half precision."""
    halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    return any(each.data_type in halves for each in model.graph.initializer)
