"""Programs as LiteRT files.

The converter turns pairs of quantization and dequantization around an operation into an operation on codes, on the
scales that are there. Images, and sometimes logits, are then codes, too: ``rewrites`` puts floats around these again.
"""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from bitsweep.backends.litert.rewrites import completed
from bitsweep.errors import CompressionError, first_line
from bitsweep.graphs.ops import aten, quantized, tidy, with_defaults
from bitsweep.graphs.program import image_shape, looks_at_batches
from bitsweep.lowering.xnnpack import for_xnnpack

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import litert_torch
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
            path.write_bytes(completed(converted.model_content()))
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
