"""Programs as LiteRT files.

The converter turns pairs of quantization and dequantization around an operation into an operation on codes, on the
scales that are there. Images, and sometimes logits, are then codes, too: the file is given the operations between these
and floats again.
"""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from bitsweep.errors import CompressionError, first_line
from bitsweep.graphs.ops import aten, quantized, tidy, with_defaults
from bitsweep.graphs.program import image_shape, looks_at_batches
from bitsweep.lowering.xnnpack import for_xnnpack

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import litert_torch
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig


def export_litert(program: ExportedProgram, path: Path, *, taken_by: Callable[..., Any]) -> None:
    """Write a program to a file that takes one image at a time.

    Args:
        taken_by: what makes such a file ready to run.

    Raises:
        CompressionError: LiteRT or its converter does not take the program.
    """
    if looks_at_batches(program):
        raise CompressionError("LiteRT chooses no ranges while it runs: use backend=onnxruntime")
    graph = for_xnnpack(program, weights_as_values=True)
    _drop_clamps_of_codes(graph)
    graph.training = False  # the converter looks at this alone
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "no")
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            image = torch.zeros(1, *image_shape(program))
            converted = litert_torch.convert(graph, (image,), quant_config=_codes_where_pairs_are())
            path.write_bytes(_with_floats_outside(converted.model_content()))
            taken_by(path, threads=1)
    except Exception as error:
        raise CompressionError(f"LiteRT does not take the program: {first_line(error)}") from error


def _drop_clamps_of_codes(graph: GraphModule) -> None:
    """Remove what clamps to the values of the first and the last code before these clamp anyway.

    The converter would leave a layer with such a clamp behind it in float, unless it clamps at 0 or at 0 and 6.
    """
    for node in graph.graph.find_nodes(op="call_function", target=quantized.quantize_per_tensor.default):
        clamp, scale, zero_point, lo, hi, _ = node.args
        if clamp.target != aten.hardtanh.default:
            continue
        source, least, most = with_defaults(clamp)
        if round(least / scale) + zero_point <= lo and round(most / scale) + zero_point >= hi:
            node.replace_input_with(clamp, source)
    tidy(graph)


def _codes_where_pairs_are() -> QuantConfig:
    """What makes the converter compute on codes; it quantizes nothing by itself."""
    static = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)
    return QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(static))


def _with_floats_outside(file: bytes) -> bytes:
    """A file whose images and logits are float32: where they are codes, these are quantized or dequantized in it."""
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(file))
    (graph,), (signature,) = model.subgraphs, model.signatureDefs
    _put_between(model, signature.inputs[0], graph.inputs, schema.BuiltinOperator.QUANTIZE)
    _put_between(model, signature.outputs[0], graph.outputs, schema.BuiltinOperator.DEQUANTIZE)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _put_between(model: Any, named: Any, ends: list[int], code: int) -> None:
    """Put an operation between what a file calls its images or logits, and floats that are called so from now on."""
    (graph,), (codes,), floats = model.subgraphs, ends, len(model.subgraphs[0].tensors)
    if graph.tensors[codes].type == schema.TensorType.FLOAT32:
        return
    model.operatorCodes.append(schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=code, version=1))
    operation = schema.OperatorT(opcodeIndex=len(model.operatorCodes) - 1, inputs=[floats], outputs=[codes])
    if code == schema.BuiltinOperator.DEQUANTIZE:
        operation.inputs, operation.outputs = operation.outputs, operation.inputs
        graph.operators.append(operation)
    else:
        graph.operators.insert(0, operation)
    shape = graph.tensors[codes].shape
    graph.tensors.append(schema.TensorT(name=b"floats", shape=shape, type=schema.TensorType.FLOAT32, hasRank=True))
    named.tensorIndex = ends[0] = floats
