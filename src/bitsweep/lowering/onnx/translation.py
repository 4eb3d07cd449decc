"""Programs as ONNX graphs, operation by operation, as PyTorch translates them.

``torch.onnx.export`` prepares everything that it can translate before it looks at the program, and runs the program on
tensors without values to find what has to be cast. That takes several times as long as the translation. Here only
what the program calls is prepared, and casts are looked for among the types that its nodes have.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
import onnxscript.function_libs.torch_lib.ops  # noqa: F401 - registers what onnxscript translates
import torch
import torch.fx.experimental._config
from onnxscript import version_converter
from onnxscript.function_libs.torch_lib import registration as onnxscript_operations
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.onnx._internal.exporter import _core, _fx_passes
from torch.onnx._internal.exporter._registration import OnnxDecompMeta, ONNXRegistry
from torch.onnx._internal.exporter._torchlib import _torchlib_registry as torch_operations
from torch.onnx._internal.fx.passes.type_promotion import TypePromotionTable, get_type_promotion_rule
from torch.onnx._internal.fx.type_utils import from_scalar_type_to_torch_dtype
from torch.utils._pytree import tree_leaves


def translate(program: ExportedProgram, own: Mapping[Any, Callable[..., Any]], *, opset: int) -> ir.Model:
    """A program in ONNX, whose operations are not taken apart, for which all of it would be traced again.

    Args:
        own: operation of the program -> what writes it, where that is not PyTorch.

    Raises:
        Exception: nothing translates one of the operations; the cause says which.
    """
    if _casts(program.graph_module):
        program = _with_casts(program)
    model: ir.Model = _core._exported_program_to_onnx_program(
        program, registry=_registry(program.graph_module, own, opset=opset)
    ).model
    version_converter.convert_version(model, opset, fallback=True)
    return model


def _registry(graph: GraphModule, own: Mapping[Any, Callable[..., Any]], *, opset: int) -> ONNXRegistry:
    """What translates the operations of a graph and of the graphs within it."""
    called = {node.target for each in _graphs(graph) for node in each.graph.nodes if node.op == "call_function"}
    by_name = {_name(target): target for target in called}
    registry = ONNXRegistry()
    registry._opset_version = opset
    for known in torch_operations.get_torchlib_ops():
        if _name(known.fx_target) in by_name:
            registry._register(known.fx_target, known)
    for name, functions in onnxscript_operations.default_registry.items():
        if name in by_name:
            for function in (*functions.overloads, *functions.complex):
                meta = OnnxDecompMeta(
                    onnx_function=function, fx_target=by_name[name], signature=None,
                    is_complex=function in functions.complex,
                )  # fmt: skip
                registry._register(by_name[name], meta)
    registry._cleanup_registry_based_on_opset_version()
    for target in called & own.keys():
        registry.register_op(target, own[target])
    return registry


def _name(target: Any) -> str:
    """The name of an operation: ``aten::conv2d.padding`` or ``_operator::getitem``."""
    if isinstance(target, OpOverload):
        return str(target.name())  # type: ignore[no-untyped-call]
    return f"{target.__module__}::{target.__name__}"


def _graphs(graph: GraphModule) -> list[GraphModule]:
    return [each for each in graph.modules() if isinstance(each, GraphModule)]


# --------------------------------------------------------------------------- casts


def _with_casts(program: ExportedProgram) -> ExportedProgram:
    """A program with a graph of its own, in which operands are cast to the type that an operation computes in."""
    found = copy.copy(program)
    found._graph_module = copy.deepcopy(program.graph_module)
    sizes: Any = torch.fx.experimental._config
    with sizes.patch(backed_size_oblivious=True):  # a batch of 1 is like all others
        _fx_passes.insert_type_promotion_nodes(found.graph_module)
        _fx_passes.remove_assertion_nodes(found.graph_module)
    return found


def _casts(graph: GraphModule) -> bool:
    """Whether an operand has another type than its operation computes in, or something is checked at run time."""
    rules = TypePromotionTable()
    nodes = [node for each in _graphs(graph) for node in each.graph.nodes if node.op == "call_function"]
    return any(_is_check(node) or _casts_operands(node, rules) for node in nodes)


def _is_check(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and not node.target._schema.returns


def _casts_operands(node: Node, rules: TypePromotionTable) -> bool:
    rule = get_type_promotion_rule(node, rules)
    if rule is None:
        return False
    args: Any = map_arg(node.args, lambda source: source.meta["val"])
    named: Any = map_arg(node.kwargs, lambda source: source.meta["val"])
    computed = rule.preview_type_promotion(args, named)
    wanted = [(args[index], dtype) for index, dtype in computed.args_dtypes.items()]
    wanted += [(named[name], dtype) for name, dtype in computed.kwargs_dtypes.items()]
    return any(_dtype(operand) != dtype for given, dtype in wanted for operand in tree_leaves(given))


def _dtype(operand: Any) -> torch.dtype | None:
    """The type of a tensor, or that of the tensors which hold a number of this kind."""
    if isinstance(operand, torch.Tensor):
        return operand.dtype
    found: torch.dtype | None = from_scalar_type_to_torch_dtype(type(operand))
    return found
