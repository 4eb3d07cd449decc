"""Operations that overwrite a tensor, in terms of those that yield a new one."""

import operator
from collections.abc import Iterator
from typing import Any

from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from bitsweep.graphs.ops import aten


def functional_graph(program: ExportedProgram) -> GraphModule:
    """Graph of a program without operations that overwrite a tensor.

    Where nobody reads the overwritten memory by another name, such an operation is replaced by the one that yields a
    new tensor. Else all of the graph is rewritten by PyTorch, which takes longer than to trace it.
    """
    graph = program.module(check_guards=False)
    assert isinstance(graph, GraphModule)
    overwriting = [node for node in graph.graph.nodes if _overwrites(node)]
    if all(map(_is_replaceable, overwriting)):
        for node in overwriting:
            _replace(node)
        return graph
    graph = program.run_decompositions({}).module(check_guards=False)
    assert isinstance(graph, GraphModule)
    for node in graph.graph.find_nodes(op="call_function", target=aten._native_batch_norm_legit_no_training.default):
        x, weight, bias, mean, variance, momentum, eps = node.args
        with graph.graph.inserting_before(node):
            norm = graph.graph.call_function(
                aten.batch_norm.default, (x, weight, bias, mean, variance, False, momentum, eps, False)
            )
        for normalized in [user for user in node.users if user.target is operator.getitem]:
            norm.meta = normalized.meta
            normalized.replace_all_uses_with(norm)
    graph.graph.eliminate_dead_code()
    return graph


def _overwrites(node: Node) -> bool:
    return (
        isinstance(node.target, OpOverload)
        and node.target._schema.name.endswith("_")
        and node.target._schema.is_mutable
    )


def _is_replaceable(node: Node) -> bool:
    """Whether there is such an operation that yields a new tensor, and nobody reads the old one by another name."""
    written = node.args[0]
    assert isinstance(written, Node)
    others = [each for each in _same_memory(written) if each is not written and each < node]
    return _functional(node) is not None and not any(reader > node for each in others for reader in each.users)


def _same_memory(node: Node) -> set[Node]:
    """What may share memory with a node: what it is a view of, and the views of that."""
    found, left = set[Node](), [node]
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += _viewed(node)
            left += [user for user in node.users if node in _viewed(user)]
    return found


def _viewed(node: Node) -> Iterator[Node]:
    """What a node yields a view of, as far as it does, or what it overwrites and yields."""
    if node.target is operator.getitem:
        yield from node.all_input_nodes
    elif isinstance(node.target, OpOverload):
        aliases = any(value.alias_info is not None for value in node.target._schema.returns)
        for argument, parameter in zip(node.args, node.target._schema.arguments, strict=False):
            if aliases and isinstance(argument, Node) and parameter.alias_info is not None:
                yield argument


def _functional(node: Node) -> Any:
    """The operation that yields what a node writes; None where there is none."""
    assert isinstance(node.target, OpOverload)
    packet = getattr(aten, node.target._schema.name.removeprefix("aten::")[:-1], None)
    return getattr(packet, node.target._overloadname, None)


def _replace(node: Node) -> None:
    """Replace an operation that overwrites its input; who reads the input after it then reads its result."""
    written = node.args[0]
    assert isinstance(written, Node)
    node.target = _functional(node)
    written.replace_all_uses_with(node, delete_user_cb=lambda user: user > node)
