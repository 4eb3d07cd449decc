"""Rewrites of a file as the converter wrote it."""

from typing import Any

from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.schema_py_generated import BuiltinOperator
from ai_edge_litert.tools import flatbuffer_utils

#: Functions of one tensor that XNNPACK has no integer kernel for. LiteRT's own ones are many times slower than a
#: dequantization, the function in float and a quantization, which yield the same codes.
WITHOUT_INTEGER_KERNEL = {
    BuiltinOperator.AVERAGE_POOL_2D,
    BuiltinOperator.GELU,
    BuiltinOperator.HARD_SWISH,
    BuiltinOperator.RELU,
    BuiltinOperator.RELU6,
    BuiltinOperator.RELU_0_TO_1,
}


def completed(file: bytes) -> bytes:
    """A file that takes and yields float32, with functions in float where XNNPACK has no integer kernel."""
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(file))
    _compute_in_float(model)
    _put_floats_outside(model)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _compute_in_float(model: Any) -> None:
    """Put functions without an integer kernel between a dequantization and a quantization."""
    (graph,) = model.subgraphs
    operations, graph.operators = graph.operators, []
    for operation in operations:
        code = model.operatorCodes[operation.opcodeIndex].builtinCode
        if code not in WITHOUT_INTEGER_KERNEL or _is_float(graph, operation.inputs[0]):
            graph.operators.append(operation)
            continue
        (codes,), (result_codes,) = operation.inputs, operation.outputs
        values, result = (_floats_like(graph, tensor) for tensor in (codes, result_codes))
        operation.inputs, operation.outputs = [values], [result]
        before = _operation(model, BuiltinOperator.DEQUANTIZE, codes, values)
        behind = _operation(model, BuiltinOperator.QUANTIZE, result, result_codes)
        graph.operators += [before, operation, behind]


def _put_floats_outside(model: Any) -> None:
    """Quantize the images, and dequantize the logits, where these are codes."""
    (graph,), (signature,) = model.subgraphs, model.signatureDefs
    (images,), (logits,) = graph.inputs, graph.outputs
    if not _is_float(graph, images):
        graph.inputs[0] = signature.inputs[0].tensorIndex = _floats_like(graph, images)
        graph.operators.insert(0, _operation(model, BuiltinOperator.QUANTIZE, graph.inputs[0], images))
    if not _is_float(graph, logits):
        graph.outputs[0] = signature.outputs[0].tensorIndex = _floats_like(graph, logits)
        graph.operators.append(_operation(model, BuiltinOperator.DEQUANTIZE, logits, graph.outputs[0]))


def _is_float(graph: Any, tensor: int) -> bool:
    return bool(graph.tensors[tensor].type == schema.TensorType.FLOAT32)


def _floats_like(graph: Any, codes: int) -> int:
    """A new tensor for the values of codes."""
    shape = graph.tensors[codes].shape
    graph.tensors.append(schema.TensorT(name=b"floats", shape=shape, type=schema.TensorType.FLOAT32, hasRank=True))
    return len(graph.tensors) - 1


def _operation(model: Any, code: int, source: int, result: int) -> Any:
    model.operatorCodes.append(schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=code, version=1))
    return schema.OperatorT(opcodeIndex=len(model.operatorCodes) - 1, inputs=[source], outputs=[result])
