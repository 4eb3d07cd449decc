"""Operations that depend on parameters alone are computed once."""

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node

from bitsweep.graphs.ops import drop_unread, set_attribute


def folded_graph(program: ExportedProgram) -> GraphModule:
    """Graph of a program in which what depends on parameters alone is a buffer."""
    graph = program.module(check_guards=False)
    assert isinstance(graph, GraphModule)
    fold_constants(graph)
    return graph


def fold_constants(graph: GraphModule) -> None:
    """Make, in place, a buffer of all that depends on parameters alone."""
    interpreter = Interpreter(graph, garbage_collect_values=False)
    constants: set[Node] = set()
    for node in list(graph.graph.nodes):
        sources = node.all_input_nodes
        if node.op == "get_attr":
            constants.add(node)
        elif node.op == "call_function" and sources and constants.issuperset(sources):
            with torch.no_grad():
                interpreter.env = {source: interpreter.run_node(source) for source in sources}
                value = interpreter.run_node(node)
            if isinstance(value, torch.Tensor):
                set_attribute(graph, f"folded_{node.name}", value)
                with graph.graph.inserting_before(node):
                    folded = graph.graph.get_attr(f"folded_{node.name}")
                node.replace_all_uses_with(folded)
                constants.add(folded)
            if not node.users:
                graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    drop_unread(graph)
    graph.recompile()
