"""From networks to graphs of aten operations, and from graphs to programs."""

import re
import traceback
import warnings
from pathlib import Path

import torch
from torch.fx import GraphModule

from bitsweep.errors import CompressionError, first_line
from bitsweep.graphs.faithful import require_faithful
from bitsweep.graphs.folding import fold_batch_norm, fold_into_layers
from bitsweep.graphs.normal_form import normal_form
from bitsweep.graphs.ops import set_attribute
from bitsweep.graphs.parallel import merge_parallel
from bitsweep.results import Shape

#: The number of images, as ``torch.export`` writes it.
_N = re.compile(r"L\['\w+'\](\[0\])?\.size\(\)\[0\]")


def trace(model: torch.nn.Module, *, input_shape: Shape) -> GraphModule:
    """Graph of a network in evaluation mode, in normal form.

    It takes any number of float32 images [N, C, H, W], whose C, H and W are the ``input_shape``.

    Raises:
        CompressionError: ``torch.export`` cannot trace the network, or takes it down wrong; what it yields for an image
            depends on those beside it; or a parameter is not finite.
    """
    learned = dict(model.named_parameters())
    for name, value in model.state_dict().items():
        # A mask may be infinite.
        if value.is_floating_point() and not (torch.isfinite(value) if name in learned else ~value.isnan()).all():
            raise CompressionError(
                f"{name} holds values that are not finite: its training failed; take other weights, or train with a "
                "lower learning rate"
            )
    graph = normal_form(export(model.cpu().eval(), input_shape=input_shape))
    require_faithful(graph, model, input_shape=input_shape)
    return graph


class Exported(torch.nn.Module):
    """A network that was exported before, as its program: in normal form, with batch normalisation folded.

    To trace a network takes longer than to read what was traced; so all that start from one network share it.

    Args:
        normalized: paths of the weights that a normalisation was folded into.
    """

    def __init__(self, program: torch.export.ExportedProgram, *, normalized: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.program, self.normalized = program, normalized

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The logits; nothing of it learns."""
        logits: torch.Tensor = graph_of(self.program)(images)
        return logits


def folded(model: torch.nn.Module, *, input_shape: Shape) -> tuple[GraphModule, tuple[str, ...]]:
    """Graph of a network in evaluation mode, in normal form, without batch normalisation.

    Returns:
        The graph, and the paths of the weights that a normalisation was folded into.

    Raises:
        CompressionError: as ``trace`` and ``fold_batch_norm`` do.
    """
    if not isinstance(model, Exported):
        graph = trace(model, input_shape=input_shape)
        normalized = fold_into_layers(graph)
        while merge_parallel(graph):
            normalized += fold_into_layers(graph)
        normalized += fold_batch_norm(graph)
        return graph, tuple(dict.fromkeys(normalized))
    graph = graph_of(model.program)
    for path, value in (*graph.named_parameters(), *graph.named_buffers()):
        set_attribute(graph, path, value.clone())  # which the program would share
    return graph, model.normalized


def export(model: torch.nn.Module, *, input_shape: Shape) -> torch.export.ExportedProgram:
    """Program of a network or graph, with a dynamic batch and images of a fixed size.

    Raises:
        CompressionError: ``torch.export`` cannot trace the network.
    """
    try:
        return _exported(model, input_shape, strict=False)
    except Exception as error:
        try:
            # Slower, but the batch stays dynamic where a network asks for the len() of a tensor.
            return _exported(model, input_shape, strict=True)
        except Exception:
            raise CompressionError(_why_not(error, input_shape)) from error


def _why_not(error: Exception, input_shape: Shape) -> str:
    """Why a network cannot be traced, and what to do, by what ``torch.export`` says."""
    if asked := re.search(r"generated guard (.*)", str(error)):
        return (
            "the network computes in one way for some numbers N of images, and in another for others "
            f"({_N.sub('N', asked[1])}); let it do the same for all, for instance torch.cdist with "
            "compute_mode=donot_use_mm_for_euclid_dist"
        )
    reason = first_line(error)
    if "fake_quantize" in reason:
        return "the network rounds its own values (fake quantization), as methods do here: give it without that"
    where = f"at {' x '.join(map(str, input_shape))}"
    if _transformed(error):
        return (
            "the network calls a transformed function (torch.vmap, torch.func.grad, ...), which no program can hold; "
            "write it out for all images at once"
        )
    if "Constraints violated (batch)" in reason:
        return (
            f"the network is written for one number of images {where}: it takes them one by one in a loop, or holds "
            "their number; let it do the same for all at once"
        )
    if "data-dependent expression" in reason:
        return (
            f"the network decides by the values of a tensor which way it goes {where}, which no program can hold; "
            "choose with torch.where instead of if and while, and keep settings as numbers, not as buffers"
        )
    return (
        f"torch.export cannot trace the network {where}: {reason}; write its forward in operations of tensors alone, "
        "without .item(), .numpy() and what else leaves them"
    )


def _transformed(error: Exception) -> bool:
    """Whether an error came from within a function that ``torch.func`` transformed."""
    files = {Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)}
    return any(file.parent.name == "_functorch" and file.stem in ("apis", "eager_transforms", "vmap") for file in files)


def graph_of(program: torch.export.ExportedProgram) -> GraphModule:
    """Graph of a program as it was traced."""
    graph = program.module(check_guards=False)
    assert isinstance(graph, GraphModule)
    return graph


class _Called(torch.nn.Module):
    """A graph that is called, with its hooks and by the names of its own: to export it as it is leaves them out."""

    _graph: GraphModule

    def __init__(self, graph: GraphModule) -> None:
        super().__init__()
        self._parameters, self._buffers, self._modules = graph._parameters, graph._buffers, graph._modules
        object.__setattr__(self, "_graph", graph)  # no module of its own

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """What the hooks leave of its outputs."""
        logits: torch.Tensor = self._graph(images)
        return logits


def _exported(model: torch.nn.Module, input_shape: Shape, *, strict: bool) -> torch.export.ExportedProgram:
    if isinstance(model, GraphModule) and model._forward_hooks:
        model = _Called(model)
    dynamic = ({0: torch.export.Dim("batch", min=1)},)
    images = torch.zeros(2, *input_shape)
    fast = torch.backends.mha.get_fastpath_enabled()
    depth = torch._C._functorch.get_dynamic_layer_stack_depth()
    try:
        # Else layers of transformers would be one operation each, that no engine knows.
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad(), warnings.catch_warnings():
            # What hooks compute, such as the weights of older normalisations, is computed in every run of the program.
            warnings.filterwarnings("ignore", message="The tensor attribute .* assigned during export")
            # Nothing here runs under the guards that a strict export makes.
            warnings.filterwarnings("ignore", message="Guards may run slower on Python 3.13.0")
            return torch.export.export(model, (images,), dynamic_shapes=dynamic, strict=strict)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        # A transformed function that cannot be traced stays entered, and this process would go on within it.
        torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)
