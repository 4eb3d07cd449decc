"""Operations of a LiteRT file, with their multiply-accumulates and arithmetic."""

import math
from typing import Any

import numpy as np

from bitsweep.results import OpProfile

#: What the engine names the parts of a graph that it hands to XNNPACK, besides the operations in them.
HANDED_OVER = "DELEGATE"


def operations_of(interpreter: Any, *, images: int) -> tuple[OpProfile, ...]:
    """The operations of a file that takes one image at a time, for so many."""
    tensors = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    found = []
    for operation in interpreter._get_ops_details():
        name = operation["op_name"]
        if name == HANDED_OVER:
            continue
        inputs = [tensors[index] for index in operation["inputs"] if index in tensors]
        outputs = [tensors[index] for index in operation["outputs"]]
        macs = images * _macs(name, [tensor["shape"] for tensor in inputs], outputs[0]["shape"])
        multiplied = inputs[1:3] if name == "TRANSPOSE_CONV" else inputs[:2]
        found.append(
            OpProfile(
                name=f"{name.lower()}_{operation['index']}",
                op=f"{name} {np.dtype(outputs[0]['dtype']).name}",
                macs=macs,
                integer=all(tensor["dtype"] == np.int8 for tensor in multiplied),
            )
        )
    return tuple(found)


def _macs(name: str, inputs: list[Any], output: Any) -> int:
    """Multiply-accumulates, from shapes: pictures are [N, H, W, C], weights [O, H, W, I], of depthwise layers [1, H, W,
    O], and of three dimensions [D, H, W, I, O]."""
    sizes, made = [[int(size) for size in shape] for shape in inputs], math.prod(map(int, output))
    match name:
        case "CONV_2D":
            return made * math.prod(sizes[1][1:])
        case "DEPTHWISE_CONV_2D":
            return made * math.prod(sizes[1][1:3])
        case "CONV_3D":
            return made * math.prod(sizes[1][:-1])
        case "TRANSPOSE_CONV":
            return math.prod(sizes[2]) * math.prod(sizes[1][:3])
        case "FULLY_CONNECTED":
            return made * sizes[1][-1]
        case "BATCH_MATMUL":
            return made * (math.prod(sizes[0][-2:]) // int(output[-2]))
    return 0
