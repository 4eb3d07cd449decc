"""Looking at the values of a graph while it runs."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

#: Called with a node, the values of its arguments, and its output.
See = Callable[[Node, tuple[Any, ...], Any], None]


@torch.no_grad()
def observe(graph: GraphModule, batches: Iterable[torch.Tensor], see: See) -> None:
    """Run a graph on batches of images, and show every node when it has run.

    Args:
        batches: float32 images [N, C, H, W].
        see: keeps what it needs; values are freed as soon as no node needs them any more.
    """
    observer = _Observer(graph, see)
    for images in batches:
        observer.run(images)


class _Observer(Interpreter):
    def __init__(self, graph: GraphModule, see: See) -> None:
        super().__init__(graph)
        self._see = see

    def run_node(self, n: Node) -> Any:
        inputs, _ = self.fetch_args_kwargs_from_env(n)
        output = super().run_node(n)
        self._see(n, inputs, output)
        return output
