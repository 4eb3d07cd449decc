"""Runs of a graph in less memory: activation functions overwrite what they alone read.

They yield the same values. What a layer has just written is still at hand, and memory of its own would not be.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.fx import GraphModule, Node

from bitsweep.graphs.ops import LAYER_KINDS, aten
from bitsweep.quantization.calibration.observers import ActivationObserver

#: Operation -> what does the same to the tensor that it reads.
IN_PLACE = {
    aten.relu.default: aten.relu_.default,
    aten.relu6.default: aten.relu6_.default,
    aten.hardtanh.default: aten.hardtanh_.default,
    aten.hardswish.default: aten.hardswish_.default,
    aten.silu.default: aten.silu_.default,
}
#: Operations besides layers whose output is memory of its own.
_NEW = {aten.add.Tensor, aten.mul.Tensor}


@contextmanager
def overwriting(graph: GraphModule) -> Iterator[None]:
    """Let, meanwhile, activation functions of a graph overwrite what they alone read.

    Args:
        graph: is to be run without gradients, by an interpreter or recompiled; it may have observers.
    """
    before = dict[Node, Any]()
    for node in graph.graph.nodes:
        if node.target in IN_PLACE and _reads_alone(graph, node.args[0]):
            before[node], node.target = node.target, IN_PLACE[node.target]
    try:
        yield
    finally:
        for node, target in before.items():
            node.target = target


def _reads_alone(graph: GraphModule, read: Node) -> bool:
    """Whether what is computed anew has one reader, apart from an observer in between, which yields what it reads."""
    if len(read.users) != 1:
        return False
    if read.op == "call_module" and isinstance(graph.get_submodule(str(read.target)), ActivationObserver):
        return _reads_alone(graph, read.all_input_nodes[0])
    return read.target in LAYER_KINDS or read.target in _NEW
