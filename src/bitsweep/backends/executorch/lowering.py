"""Programs as ExecuTorch files, in the form that XNNPACK recognises."""

import json
import warnings
from pathlib import Path

import executorch.kernels.quantized  # noqa: F401  (kernels of what XNNPACK leaves over)
import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir.passes import MemoryPlanningPass
from torch.export import ExportedProgram

from bitsweep.errors import CompressionError, first_line
from bitsweep.graphs.program import image_shape, profile_of
from bitsweep.lowering.xnnpack import for_xnnpack


def export_executorch(program: ExportedProgram, path: Path, *, max_batch: int) -> None:
    """Write a program to one file that takes up to ``max_batch`` images.

    Raises:
        CompressionError: XNNPACK does not take a layer, or ExecuTorch not the program.
    """
    shape = image_shape(program)
    macs = [kernel.macs for kernel in profile_of(program, np.zeros((1, *shape), np.float32)) if kernel.macs]
    facts = {"shape": shape, "macs": macs, "max_batch": max_batch}
    dynamic = ({0: torch.export.Dim("batch", min=1, max=max_batch)},)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            # ExecuTorch takes the batch that it sees for typical: of more images than channels, if it is the largest.
            bounded = torch.export.export(
                for_xnnpack(program), (torch.empty(max_batch, *shape),), dynamic_shapes=dynamic
            )
            edge = to_edge_transform_and_lower(
                bounded,
                partitioner=[XnnpackPartitioner()],
                compile_config=EdgeCompileConfig(_check_ir_validity=False),
                constant_methods={"facts": json.dumps(facts)},
            )
            # Else buffers for the largest batch would be kept, beside the caller's own.
            planning = MemoryPlanningPass(alloc_graph_input=False, alloc_graph_output=False)
            file = edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning))
    except Exception as error:
        reason = first_line(error)
        raise CompressionError(f"ExecuTorch does not take the program: {reason}") from error
    left = [
        node.name for node in edge.exported_program().graph.nodes if "convolution" in node.name or "mm" in node.name
    ]
    if left:
        raise CompressionError(f"XNNPACK does not take {left[0]}: use backend=onnxruntime")
    path.write_bytes(file.buffer)
