"""Programs as ONNX files, in the form that integer engines recognise: explicit QuantizeLinear and DequantizeLinear.

The file holds codes as codes, weights in as few bits as ONNX has a type for, and half-precision parameters as such.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import optimizer
from torch.export import ExportedProgram

from bitsweep.config.precision import FloatFormat
from bitsweep.errors import CompressionError, first_line
from bitsweep.graphs.normal_form import place_of, refuse_groups_of_images
from bitsweep.lowering.onnx import parameters, rewrites
from bitsweep.lowering.onnx.operators import translations

#: The first opset with 4-bit codes and 16-bit ones.
OPSET = 21
HALVES: dict[int | None, FloatFormat] = {ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16"}
INPUT, OUTPUT = "images", "logits"
#: Name of the note in a file on what its floats are computed in, for engines that are told so apart from the graph.
ARITHMETIC = "float_arithmetic"


def export_onnx(
    program: ExportedProgram,
    path: Path,
    *,
    codes_of_biases: bool = True,
    codes_of_gates: bool = False,
    fused_gates: bool = False,
    convolved_averages: bool = False,
    wide_groups: bool = False,
    pointwise_linear: bool = False,
    pairs_after_joins: bool = True,
    reduced_tokens: bool = True,
    float_weights: bool = True,
    bits_of_weights: int = 8,
    floats: FloatFormat = "float32",
) -> None:
    """Write a program to one ONNX file with a dynamic batch; the same program gives the same bytes.

    The graph maps ``images``, float32 [batch, 3, H, W], to ``logits``, float32 [batch, K].

    Args:
        codes_of_biases: whether biases that are 32-bit codes stay codes; else the values that these mean are written.
        codes_of_gates: whether hard-swish and SiLU of 8-bit codes are written as products of two tensors of codes, for
            engines without a kernel for these functions.
        fused_gates: whether inputs of hard-swish, SiLU and the sigmoid are dequantized by arithmetic, for engines that
            fuse this, and the function, into the layer before.
        convolved_averages: whether averages of windows of 8-bit codes are depthwise convolutions, for engines that have
            better kernels for these.
        wide_groups: whether convolutions of codes with narrow groups have fewer, wider ones, with weights of 0, for
            engines that multiply one matrix for each group.
        pointwise_linear: whether linear layers of codes are written as 1x1 convolutions over the batch, for engines
            that have better kernels for these.
        pairs_after_joins: whether the output of a concatenation has a pair where its parts have the same one; else
            tokens are joined as codes, too.
        reduced_tokens: whether sums and averages over tokens are reductions; else they are products.
        float_weights: whether an engine leaves weights in float where a layer is between codes; else it is kept from
            rounding them.
        bits_of_weights: of the narrowest type that codes of weights may be written in, 2, 4 or 8. Narrow ones are
            followed by a cast to bytes, for engines that do this once, when they load the file.
        floats: what the file says that floats between codes are computed in; a program in half precision says so
            itself.

    Raises:
        CompressionError: ONNX cannot express an operation of the program.
    """
    model = _written(program, translations(codes_of_gates=codes_of_gates))
    model.graph.inputs[0].name, model.graph.outputs[0].name = INPUT, OUTPUT
    # As nodes, constants would be compared with every pattern.
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    optimizer.optimize_ir(model, num_iterations=1, should_fold=lambda node: False if _widens_half(node) else None)
    passes.IdentityEliminationPass()(model)
    if codes_of_biases:
        parameters.drop_zero_points_of_biases(model.graph)
    else:
        parameters.dequantize_biases(model.graph)
    parameters.separate_zero_points(model.graph)
    rewrites.rectify_codes(model.graph)
    if convolved_averages:
        rewrites.convolve_averages(model.graph)
    rewrites.pad_in_convolutions(model.graph)
    rewrites.pad_codes(model.graph)
    if wide_groups:
        rewrites.widen_groups(model.graph)
    if fused_gates:
        rewrites.dequantize_gates_by_arithmetic(model.graph)
    if not pairs_after_joins:
        rewrites.drop_pairs_after_joins(model.graph)
        rewrites.join_tokens_as_codes(model.graph)
    if not reduced_tokens:
        rewrites.sum_tokens_by_products(model.graph)
    if pointwise_linear:
        rewrites.convolve_linear_layers(model.graph)
    if not float_weights:
        parameters.keep_float_weights(model.graph)
    parameters.narrow_weights(model, bits_of_weights)
    _strip(model)
    model.metadata_props[ARITHMETIC] = HALVES.get(_computed_in(model.graph), floats)
    ir.save(model, path)


def _written(program: ExportedProgram, translated: dict[Any, Callable[..., Any]]) -> ir.Model:
    """A program as PyTorch writes it; with its operations taken apart only where ONNX has none for some of them.

    Raises:
        CompressionError: ONNX cannot express an operation of the program.
    """
    try:
        # Parts of PyTorch's exporter that other versions may have elsewhere.
        from bitsweep.lowering.onnx.translation import translate

        return translate(program, translated, opset=OPSET)
    except Exception:  # whatever translations raise; what is left of it is said of the operations taken apart
        try:
            exported = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, custom_translation_table=translated, optimize=False,
                verbose=False,
            )  # fmt: skip
        except torch.onnx.errors.OnnxExporterError as error:
            reason = first_line(error.__cause__ or error)
            if operation := re.search(r"%(\w+) .*target=torch\.ops\.([\w.]+)", reason):
                name, target = operation.groups()
                node = next((node for node in program.graph.nodes if node.name == name), None)
                if node is not None:
                    refuse_groups_of_images(node, "ONNX")
                place = place_of(node) if node else f"{name} ({target})"
                reason = f"nothing translates {place}; use backend=fbgemm, or another operation in the network"
            raise CompressionError(f"ONNX cannot express the program: {reason}") from error
    assert exported is not None
    return exported.model


def _strip(model: ir.Model) -> None:
    """Leave only what an engine needs: no names of source files, no shapes that follow from others."""
    passes.RemoveUnusedNodesPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)
    for node in model.graph:
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.type = value.shape = None
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.shape is not None
        value.shape = ir.Shape(["batch", *value.shape[1:]])
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _computed_in(graph: ir.Graph) -> int:
    """The type that images are cast to before anything is done with them."""
    (images,) = graph.inputs
    readers = [reader for reader, _ in images.uses()]
    return readers[0].attributes.get_int("to") if [each.op_type for each in readers] == ["Cast"] else ir.DataType.FLOAT


def _widens_half(node: ir.Node) -> bool:
    """Whether folding a node would store half-precision parameters in twice their size."""
    source = node.inputs[0] if node.op_type == "Cast" else None
    return source is not None and source.dtype in HALVES
