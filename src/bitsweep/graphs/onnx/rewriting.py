"""Rewrites of ONNX graphs: their nodes, in order, with an index of who makes and who reads a tensor."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from bitsweep.graphs.onnx.reading import OnnxGraph, OnnxNode
from bitsweep.results import Array


class Rewriter:
    """A graph that is being changed.

    Attributes:
        constants: by name, with those that rewrites add.
    """

    def __init__(self, graph: OnnxGraph) -> None:
        self.graph = graph
        self.constants: dict[str, Array] = dict(graph.constants)
        self._made_by = {name: node for node in graph.nodes for name in node.outputs}
        self._readers: dict[str, list[OnnxNode]] = defaultdict(list)
        for node in graph.nodes:
            for name in node.inputs:
                self._readers[name].append(node)

    def maker(self, name: str, *ops: str) -> OnnxNode | None:
        """The node that makes a tensor, if it is one of some operations."""
        node = self._made_by.get(name)
        return node if node is not None and node.op in ops else None

    def read_once(self, name: str) -> bool:
        """Whether one node reads a tensor, and nothing else does."""
        return len(self._readers[name]) == 1 and name not in self.graph.outputs

    def only_reader(self, name: str, *ops: str) -> OnnxNode | None:
        """That node, if it is one of some operations."""
        (reader,) = self._readers[name] if self.read_once(name) else (None,)
        return reader if reader is not None and reader.op in ops else None

    def number(self, name: str) -> float | None:
        """The value of a constant that holds one; None for anything else."""
        value = self.constants.get(name)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def constant(self, name: str, value: Array) -> str:
        """Keep a new constant under a name."""
        self.constants[name] = value
        return name

    def replaced(self, rewrite: "Callable[[Rewriter, OnnxNode], Iterable[OnnxNode] | None]") -> OnnxGraph:
        """The graph with some nodes replaced by others, for each of which a rewrite may give those; None: it stays.

        What nobody reads afterwards is left out.
        """
        nodes = [each for node in self.graph.nodes for each in (rewrite(self, node) or [node])]
        return pruned(replace(self.graph, nodes=tuple(nodes), constants=self.constants))


def pruned(graph: OnnxGraph) -> OnnxGraph:
    """The same without nodes and constants that nobody reads; every tensor once, by whom makes it last."""
    last: dict[str, int] = {name: at for at, node in enumerate(graph.nodes) for name in node.outputs if name}
    needed, kept = {*graph.outputs}, []
    for at in range(len(graph.nodes) - 1, -1, -1):
        node = graph.nodes[at]
        if any(name in needed and last[name] == at for name in node.outputs if name):
            kept.append(node)
            needed.update(node.inputs)
    constants = {name: value for name, value in graph.constants.items() if name in needed}
    return replace(graph, nodes=tuple(reversed(kept)), constants=constants)


def made(op: str, *inputs: str, into: str, like: OnnxNode, attributes: Mapping[str, Any] | None = None) -> OnnxNode:
    """A new node in the place of another."""
    return replace(like, op=op, inputs=inputs, outputs=(into,), attributes=dict(attributes or {}))
