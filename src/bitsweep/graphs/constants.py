"""Operations that do not depend on the images are computed once."""

import operator
from collections.abc import Container, Iterable
from typing import Any

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node

from bitsweep.graphs.editing import Editor
from bitsweep.graphs.ops import aten, set_attribute, tidy

#: Operations that look at no more of what they read than its shape and type.
_FILLING = {
    aten.full_like.default, aten.new_full.default, aten.new_ones.default, aten.new_zeros.default,
    aten.ones_like.default, aten.zeros_like.default,
}  # fmt: skip
_EXPANDING = {aten.expand.default, aten.expand_as.default}
#: Operations that repeat a tensor of one image for the others by themselves.
_BROADCASTING = {aten.add.Tensor, aten.div.Tensor, aten.mul.Tensor, aten.sub.Tensor}


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


def fold_what_images_share(graph: GraphModule) -> None:
    """Compute once, in place, what a network computes for each image though it is the same for all of them.

    Such are embeddings of positions, which come from the shape of the images.
    """
    (images,) = graph.graph.find_nodes(op="placeholder")
    number = images.meta["val"].shape[0]
    if not isinstance(number, torch.SymInt):
        return
    known = _of_two_images(graph, number)
    for node, value in known.items():
        if node.target in _EXPANDING or all(user in known for user in node.users) or not _repeats(node, number, value):
            continue
        edit = Editor(graph, node.next)
        one = edit.constant(f"shared_{node.name}", value[:1].clone(memory_format=torch.contiguous_format))
        for user in [user for user in node.users if user.target in _BROADCASTING and user not in known]:
            others = [_shape(each) for each in user.all_input_nodes if each is not node]
            if _shape(user) in others:
                user.replace_input_with(node, one)
        if node.users:
            sizes = [edit.call(aten.sym_size.int, images, 0), *[-1] * (value.ndim - 1)]
            node.replace_all_uses_with(edit.call(aten.expand.default, one, sizes))
    tidy(graph)


def _repeats(node: Node, number: torch.SymInt, value: Any) -> bool:
    """Whether the images have the same in the first dimension, which is theirs."""
    if not isinstance(value, torch.Tensor) or not value.ndim:
        return False
    return _shape(node) == str((number, *value.shape[1:])) and torch.equal(value[0], value[1])


def _shape(node: Node) -> str:
    """Written down, since to ask whether such sizes are the same could fix the number of images."""
    return str(tuple(node.meta["val"].shape))


def _of_two_images(graph: GraphModule, number: torch.SymInt) -> dict[Node, Any]:
    """What the nodes yield, for two images, that read no more of the images than how many there are, and their size."""
    interpreter = Interpreter(graph, garbage_collect_values=False)
    known = interpreter.env
    two = dict.fromkeys(number.node.expr.free_symbols, 2)

    def of_two(size: int | torch.SymInt) -> int:
        return size if isinstance(size, int) else int(size.node.expr.subs(two))

    for node in graph.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt) and value.node.expr.free_symbols == two.keys():
            known[node] = of_two(value)
        elif node.op == "get_attr" or _is_constant(node, known):
            with torch.no_grad():
                known[node] = interpreter.run_node(node)
        elif node.target in _FILLING and all(source in known for source in node.all_input_nodes[1:]):
            like = node.args[0]
            known[like] = torch.empty((), dtype=like.meta["val"].dtype).expand([*map(of_two, like.meta["val"].shape)])
            known[node] = interpreter.run_node(node)
            del known[like]
    return known


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
