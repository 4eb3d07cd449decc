"""Whether a graph computes what the network does that it was traced from, for one image as for several."""

import contextlib
import copy

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from bitsweep.errors import CompressionError, first_line
from bitsweep.graphs.ops import aten
from bitsweep.results import Shape

_IMAGES = 3
#: Differences, relative to all values; rounding stays far below.
_TOLERANCE = 1e-3


def require_faithful(graph: GraphModule, model: nn.Module, *, input_shape: Shape) -> None:
    """Refuse a network that is traced as another one, and one whose outputs for an image depend on those beside it.

    Both are measured wrong without a word: the second in batches, and deployed for one image at a time.

    Args:
        model: in evaluation mode, on the CPU.

    Raises:
        CompressionError: it is such a network.
    """
    images = torch.randn(_IMAGES, *input_shape, generator=torch.Generator().manual_seed(0))
    try:
        fault = _fault(graph, model, images)
    except Exception as error:  # whatever operations say of shapes
        raise CompressionError(_another(first_line(error))) from error
    if fault and not _is_rounding(graph, model, images):
        raise CompressionError(fault)


def _is_rounding(graph: GraphModule, model: nn.Module, images: Tensor) -> bool:
    """Whether a fault is gone in double precision: noise is no image, and some networks let rounding grow with it."""
    with contextlib.suppress(Exception):  # a network may hold operations that take float32 alone
        return not _fault(copy.deepcopy(graph).double(), copy.deepcopy(model).double(), images.double())
    return False


def _fault(graph: GraphModule, model: nn.Module, images: Tensor) -> str:
    """What is wrong with a graph; empty for nothing."""
    with torch.no_grad():
        meant = tree_leaves(model(images.clone()))
        found, *alone = (tree_leaves(graph(each.clone())) for each in (images, *images[:, None]))
    if differ(meant, found):
        return _another("other outputs for random images")
    # Each of them: the largest value over a batch is one of them alone's.
    if any(differ([each[n : n + 1] for each in found], one) for n, one in enumerate(alone)):
        if norm := _norm_of_batches(graph):
            return f"{norm} normalises by the statistics of a batch; set track_running_stats=True"
        return (
            "what the network yields for an image depends on the images beside it (a mean or a largest value over the "
            "batch, say): it would be measured in batches and deployed one by one; let it look at each image alone"
        )
    return ""


def _another(reason: str) -> str:
    return (
        "torch.export takes the network down as another one, for it calls torch.func or torch.autograd in its "
        f"forward, or changes what it keeps: write it out in plain operations ({reason})"
    )


def differ(ones: list[Tensor], others: list[Tensor], *, tolerance: float = _TOLERANCE) -> bool:
    """Whether outputs are other ones than rounding explains: by more than a share of their length."""
    pairs = [
        (one.float().nan_to_num(), other.float().nan_to_num())
        for one, other in zip(ones, others, strict=False)
        if isinstance(one, Tensor) and isinstance(other, Tensor)
    ]
    return any(
        one.shape != other.shape or (one - other).norm() > tolerance * (one.norm() + 1e-12) for one, other in pairs
    )


def _norm_of_batches(graph: GraphModule) -> str:
    """A normalisation by statistics of the batch, if there is one."""
    for norm in graph.graph.find_nodes(op="call_function", target=aten.batch_norm.default):
        if norm.args[3] is None or norm.args[5]:
            return str(norm.name)
    return ""
