"""Graphs as programs: the form that is stored and lowered, in which every parameter is an input of the graph.

``torch.export`` would trace a graph once more for that. What it would find is known: the operations are those of the
graph, and the shapes follow from that of the images.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._export.verifier import TrainingIRVerifier
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.experimental.symbolic_shapes import free_symbols
from torch.utils import _pytree as pytree
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from bitsweep.graphs.ops import attribute, quantized

#: One tensor in, by position, and one out.
_CALL = ModuleCallSignature(
    inputs=[], outputs=[], in_spec=pytree.tree_structure(((0,), {})), out_spec=pytree.tree_structure(0)
)

#: What yields the values of stored codes, float32.
_STORED = {quantized.dequantize_per_tensor.default, quantized.dequantize_per_channel.default}
_ANY_NUMBER = ValueRanges(1, int_oo)


def program_of(graph: GraphModule) -> ExportedProgram:
    """The program of the graph of a program, with whatever was rewritten since; the graph stays as it is.

    Args:
        graph: maps images [N, C, H, W] to one tensor.
    """
    (images,) = graph.graph.find_nodes(op="placeholder")
    example = images.meta["val"]
    subgraphs = {path: module for path, module in graph.named_children() if isinstance(module, GraphModule)}
    lifted, read = _lifted(graph.graph, subgraphs)
    parameters = {name: attribute(graph, node) for name, node in read.items()}
    _Shapes(GraphModule(subgraphs, lifted), parameters, example).run()
    inputs = [
        InputSpec(InputKind.BUFFER, TensorArgument(name), str(node.target), persistent=True)
        for name, node in read.items()
    ]
    (output,) = lifted.find_nodes(op="output")
    ((yielded,),) = output.args
    program = ExportedProgram(
        root=subgraphs,
        graph=lifted,
        graph_signature=ExportGraphSignature(
            [*inputs, InputSpec(InputKind.USER_INPUT, TensorArgument(images.name), None)],
            [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(yielded.name), None)],
        ),
        state_dict={str(node.target): parameters[name] for name, node in read.items()},
        range_constraints=dict.fromkeys(free_symbols(example), _ANY_NUMBER),
        module_call_graph=[ModuleCallEntry(fqn="", signature=_CALL)],
        verifiers=[TrainingIRVerifier],
    )
    program._guards_code = []  # what was asked about the example's batch while shapes were found
    return program


def _lifted(graph: Graph, subgraphs: Mapping[str, GraphModule]) -> tuple[Graph, dict[str, Node]]:
    """A copy of a graph that takes its parameters before the images; and by input, the node that read the parameter."""
    lifted, copies = Graph(), dict[Node, Node]()
    inputs, read = dict[str, Node](), dict[str, Node]()
    for node in graph.find_nodes(op="get_attr"):
        path = str(node.target)
        if path in subgraphs or not node.users:
            continue
        if path not in inputs:
            inputs[path] = lifted.placeholder(re.sub(r"\W", "_", f"b_{path}"))
            inputs[path].meta = {"val": node.meta.get("val")}
            inputs[path].target = inputs[path].name  # which is another where two paths differ in their dots alone
            read[inputs[path].name] = node
        copies[node] = inputs[path]
    for node in graph.nodes:
        if node.op == "output":
            lifted.output(tuple(copies[yielded] for yielded in node.all_input_nodes))
        elif node not in copies and (node.op != "get_attr" or node.target in subgraphs):
            copies[node] = lifted.node_copy(node, copies.__getitem__)
    lifted.eliminate_dead_code()
    return lifted, read


class _Shapes(Interpreter):
    """Runs a graph on tensors without values, and leaves them with its nodes; where nothing changed, those that it has.

    Args:
        parameters: by the name of their input.
        example: such images.
    """

    def __init__(self, graph: GraphModule, parameters: Mapping[str, torch.Tensor], example: Any) -> None:
        super().__init__(graph)
        self._parameters, self._example = parameters, example
        self._unchanged: set[Node] = set()

    def run_node(self, n: Node) -> Any:
        found = self._found(n)
        if n.op != "output":
            if _alike(found, n.meta.get("val")):
                self._unchanged.add(n)
            n.meta = n.meta | {"val": found}
        return found

    def _found(self, node: Node) -> Any:
        if node.op == "placeholder":
            given = self._parameters.get(node.name)
            return self._example if given is None else self._without_values(given)
        if node.target in _STORED and node.all_input_nodes[0].op == "placeholder":
            return self._without_values(node.all_input_nodes[0].meta["val"], dtype=torch.float32)
        if (source := _restored(node)) is not None:
            if source in self._unchanged:
                self._unchanged.add(node)
            return source.meta["val"]
        if self._unchanged.issuperset(node.all_input_nodes) and (known := node.meta.get("val")) is not None:
            return known
        with self._example.fake_mode, enable_python_dispatcher():
            return super().run_node(node)

    def _without_values(self, given: torch.Tensor, *, dtype: torch.dtype | None = None) -> FakeTensor:
        """A tensor of the same shape and memory layout without values, of another type where one is given."""
        shape = torch.empty_strided(given.shape, given.stride(), dtype=dtype or given.dtype, device="meta")
        return FakeTensor(self._example.fake_mode, shape, given.device)


def _alike(one: Any, other: Any) -> bool:
    """Whether tensors are of one type and shape."""
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return False
    return one.dtype == other.dtype and list(map(str, one.shape)) == list(map(str, other.shape))


def _restored(dequantize: Node) -> Node | None:
    """What yields the float32 tensor whose codes a node dequantizes; None for other nodes."""
    codes = dequantize.all_input_nodes[0] if dequantize.target == quantized.dequantize_per_tensor.default else None
    if codes is None or codes.target != quantized.quantize_per_tensor.default:
        return None
    source = codes.all_input_nodes[0]
    return source if source.meta["val"].dtype == torch.float32 else None
