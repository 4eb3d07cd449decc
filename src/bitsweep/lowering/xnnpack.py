"""Programs in the form that engines with XNNPACK's kernels take.

Biases are float parameters, which engines turn into codes themselves. A layer whose output is not quantized, as the
last one that gives the logits, is computed in float: outputs of XNNPACK's integer kernels are codes.
"""

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from bitsweep.graphs.ops import arguments, aten, attribute, quantized, reads_attribute, set_attribute, tidy

#: Dequantization -> the quantization that it undoes.
INVERSES = {
    quantized.dequantize_per_tensor.default: quantized.quantize_per_tensor.default,
    quantized.dequantize_per_channel.default: quantized.quantize_per_channel.default,
}
RECTIFIERS = {aten.relu.default, aten.relu6.default, aten.hardtanh.default}


def for_xnnpack(program: ExportedProgram, *, weights_as_values: bool = False) -> GraphModule:
    """Graph of a program with float biases, and float weights in layers without an integer kernel.

    Args:
        weights_as_values: quantize weights in the graph, from the values of their codes, with all codes of a byte but
            -128; else the graph holds the codes.
    """
    graph = program.module(check_guards=False)
    assert isinstance(graph, GraphModule)
    for node in [node for node in graph.graph.nodes if node.target in INVERSES and reads_attribute(node.args[0])]:
        codes = attribute(graph, node.args[0])
        is_float = codes.dtype == torch.int32 or not all(_takes_codes(layer) for layer in node.users)
        if not is_float and not weights_as_values:
            continue
        given = [attribute(graph, each) if isinstance(each, Node) else each for each in arguments(node)]
        set_attribute(graph, f"{node.name}_values", node.target(*given))
        with graph.graph.inserting_before(node):
            values = graph.graph.get_attr(f"{node.name}_values")
            if is_float:
                node.replace_all_uses_with(values)
            else:
                grid = (*arguments(node)[1:-3], -127, 127, arguments(node)[-1])
                node.args = (graph.graph.call_function(INVERSES[node.target], (values, *grid)), *grid)
    tidy(graph)
    return graph


def _takes_codes(layer: Node) -> bool:
    """Whether XNNPACK has an integer kernel: for inputs quantized at run time, or where the output is quantized."""
    if arguments(layer)[0].target == quantized.dequantize_per_tensor.tensor:
        return True
    readers = list(layer.users)
    if len(readers) == 1 and readers[0].target in RECTIFIERS:
        readers = list(readers[0].users)
    return len(readers) == 1 and readers[0].target == quantized.quantize_per_tensor.default
