"""Operations that depend on parameters alone are computed once."""

import operator
from collections.abc import Container, Iterable

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node

from bitsweep.graphs.ops import set_attribute, tidy


def folded_graph(program: ExportedProgram) -> GraphModule:
    """Graph of a program in which what depends on parameters alone is a buffer."""
    graph = program.module(check_guards=False)
    assert isinstance(graph, GraphModule)
    fold_constants(graph)
    return graph


def fold_constants(graph: GraphModule) -> None:
    """Make, in place, a buffer of all that depends on parameters alone, or on nothing."""
    interpreter = Interpreter(graph, garbage_collect_values=False)
    known = interpreter.env
    for node in list(graph.graph.nodes):
        if _is_check(node) and all(source in known for source in node.all_input_nodes):
            graph.graph.erase_node(node)
        elif node.op == "get_attr" or _is_constant(node, known):
            with torch.no_grad():
                known[node] = interpreter.run_node(node)
    parameters = [value for node, value in known.items() if node.op == "get_attr" and isinstance(value, torch.Tensor)]
    for node, value in known.items():
        if node.op == "get_attr" or not isinstance(value, torch.Tensor) or all(user in known for user in node.users):
            continue
        set_attribute(graph, f"folded_{node.name}", _of_its_own(value, parameters))
        with graph.graph.inserting_before(node):
            folded = graph.graph.get_attr(f"folded_{node.name}")
        folded.meta["val"] = node.meta.get("val")
        node.replace_all_uses_with(folded)
    tidy(graph)


def _of_its_own(value: torch.Tensor, parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """A tensor that shares no memory with parameters, and fills its own: files of programs hold no others."""
    memory = value.untyped_storage()
    shared = any(each.untyped_storage().data_ptr() == memory.data_ptr() for each in parameters)
    return value.clone(memory_format=torch.contiguous_format) if shared or memory.nbytes() != value.nbytes else value


def _is_check(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and not node.target._schema.returns


def _is_constant(node: Node, known: Container[Node]) -> bool:
    """Whether a node yields the same in every run."""
    if not isinstance(node.target, OpOverload):
        return node.target is operator.getitem and node.args[0] in known
    if torch.Tag.nondeterministic_seeded in node.target.tags:
        return False
    return all(source in known for source in node.all_input_nodes)
