"""Programs that were written down for one number of images, for any number of them.

Such a program holds that number wherever its network asked for the size of a tensor: in reshapes, and where a token is
repeated for each image. Which of the numbers in it are that one is found by running it on more images, in shapes alone.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node

from bitsweep.errors import CompressionError, first_line
from bitsweep.graphs.ops import aten

#: By how much the batch grows when shapes are looked at; the same factor is then found in them.
_GROWTH = 13
#: Differences to the program on each image alone, relative to the largest value.
_TOLERANCE = 1e-3
_VIEWS = {aten.view.default, aten.reshape.default, aten._unsafe_view.default}


def any_batch(program: ExportedProgram) -> GraphModule:
    """Graph of a program from images [N, C, H, W], as a network that takes any N and can be trained and traced again.

    Raises:
        CompressionError: it was written for one N alone.
    """
    unlifted = program.module(check_guards=False)
    assert isinstance(unlifted, GraphModule)
    graph = GraphModule(unlifted, unlifted.graph)
    (images,) = graph.graph.find_nodes(op="placeholder")
    shape = images.meta["val"].shape
    if isinstance(shape[0], int):
        before = GraphModule(unlifted, unlifted.graph.__deepcopy__())
        try:
            with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
                _Freed(graph, images).run(torch.empty(shape[0] * _GROWTH, *shape[1:]))
            graph.recompile()
            same = _agree(before, graph, [int(size) for size in shape])
        except Exception as error:  # whatever operations say of shapes
            raise CompressionError(f"{_for_one(shape[0])} ({first_line(error)})") from error
        if not same:
            raise CompressionError(_for_one(shape[0]))
    return graph


def _for_one(batch: int) -> str:
    return (
        f"the program takes {batch} image{'s' * (batch != 1)} at a time and no other number; export it with "
        'dynamic_shapes=({0: torch.export.Dim("batch")},)'
    )


def _agree(before: GraphModule, graph: GraphModule, shape: Sequence[int]) -> bool:
    """Whether images together give what each of them gives alone."""
    batch, generator = shape[0], torch.Generator().manual_seed(0)
    images = torch.randn(2 * batch + 1, *shape[1:], generator=generator)
    with torch.no_grad():
        together = _first(graph.eval()(images))
        for start in (0, batch, batch + 1):
            alone = _first(before.eval()(images[start : start + batch]))
            error = (together[start : start + batch] - alone).abs().max()
            if together.shape[1:] != alone.shape[1:] or error > _TOLERANCE * alone.abs().max():
                return False
    return True


def _first(outputs: Any) -> Tensor:
    found: Tensor = torch.utils._pytree.tree_leaves(outputs)[0]
    return found


class _Freed(Interpreter):
    """Runs a graph on more images than it was written for, and changes what in it stands for their number."""

    def __init__(self, graph: GraphModule, images: Node) -> None:
        super().__init__(graph)
        self._images, self._batch = images, int(images.meta["val"].shape[0])
        #: Size of a dimension that views let hold the batch and more -> how much of that lies within an image.
        self._within: dict[int, int] = {}

    def run_node(self, n: Node) -> Any:
        if n.target in _VIEWS:
            self._free_view(n)
        elif n.target is aten.cat.default:
            self._repeat_tokens(n)
        return super().run_node(n)

    def _free_view(self, view: Node) -> None:
        """Leave the dimension of a view that holds the batch to be found from the size of what it reads."""
        source, sizes = view.args
        assert isinstance(source, Node)
        before, now = list(source.meta["val"].shape), list(self.env[source].shape)
        wanted = list(view.meta["val"].shape)
        grown = [dim for dim, (old, new) in enumerate(zip(before, now, strict=True)) if old != new]
        if not grown or not all(isinstance(size, int) for size in [*wanted, *sizes]):  # type: ignore[misc, union-attr]
            return
        within = self._within.get(before[grown[0]], before[grown[0]] // self._batch)
        inner = within * math.prod(before[grown[0] + 1 :])  # values between one image and the next
        dim = _place_of_batch(wanted, self._batch, inner)
        self._within[wanted[dim]] = inner // math.prod(wanted[dim + 1 :])
        view.args = (source, [-1 if each == dim else size for each, size in enumerate(wanted)])

    def _repeat_tokens(self, join: Node) -> None:
        """Let what is the same for all images be there once for each, where it is joined to what is not."""
        parts: Any = join.args[0]
        rows = [int(self.env[part].shape[0]) for part in parts]
        dim = join.args[1] if len(join.args) > 1 else 0
        if len({*rows}) == 1 or dim == 0:
            return
        with join.graph.inserting_before(join):
            number = join.graph.call_function(aten.sym_size.int, (self._images, 0))
            self.env[number] = self._batch * _GROWTH
            repeated = []
            for part, count in zip(parts, rows, strict=True):
                if count != self._batch:
                    repeated.append(part)
                    continue
                one = join.graph.call_function(aten.slice.Tensor, (part, 0, 0, 1))
                each = join.graph.call_function(
                    aten.expand.default, (one, [number, *[-1] * (part.meta["val"].ndim - 1)])
                )
                for made in (one, each):
                    self.env[made] = super().run_node(made)
                repeated.append(each)
        join.args = (repeated, *join.args[1:])


def _place_of_batch(shape: Sequence[int], batch: int, inner: int) -> int:
    """The dimension of a shape that holds the batch, of whose images each has so many values next to each other.

    Where several may, the last is least likely, since layers have so many inputs; and a batch is put before more often
    than behind other dimensions.

    Raises:
        ValueError: none can.
    """
    found = []
    for dim, size in enumerate(shape):
        after = math.prod(shape[dim + 1 :])
        if inner % after == 0 and size % (batch * (inner // after)) == 0:
            outer = size // (batch * (inner // after))
            found.append((dim == len(shape) - 1, outer, inner // after, dim))
    if not found:
        raise ValueError(f"no dimension of {list(shape)} holds {batch} images of {inner} values")
    return min(found)[-1]
