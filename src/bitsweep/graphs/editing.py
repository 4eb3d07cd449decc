"""New operations in a graph, with the shape and type of what they yield."""

from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from bitsweep.graphs.ops import attribute, free_path, set_attribute


class Editor:
    """Puts operations before a node of a graph, in whose place they come."""

    def __init__(self, graph: GraphModule, place: Node) -> None:
        self.graph, self.place = graph, place
        self._mode = next(
            node.meta["val"].fake_mode for node in graph.graph.nodes if isinstance(node.meta.get("val"), FakeTensor)
        )

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A call of an operation."""
        with self.graph.graph.inserting_before(self.place):
            node = self.graph.graph.call_function(target, args, kwargs)
        # Kernels in C++, and what is asked on the way, would fix the number of images.
        with self._mode, enable_python_dispatcher(), self._mode.shape_env.suppress_guards():
            node.meta["val"] = target(*map_arg(args, self._value), **map_arg(kwargs, self._value))
        node.meta["nn_module_stack"] = self.place.meta.get("nn_module_stack", {})
        return node

    def constant(self, name: str, value: torch.Tensor) -> Node:
        """A node that reads a tensor, which is kept under a name, or one like it where the graph has that already."""
        name = free_path(self.graph, name)
        set_attribute(self.graph, name, value)
        with self.graph.graph.inserting_before(self.place):
            node = self.graph.graph.get_attr(name)
        node.meta["val"] = self._mode.from_tensor(value)
        return node

    def _value(self, node: Node) -> Any:
        return self._mode.from_tensor(attribute(self.graph, node)) if node.op == "get_attr" else node.meta["val"]
