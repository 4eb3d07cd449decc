"""ONNX files of other conventions than PyTorch's: images with their channels last, and probabilities for logits."""

from collections.abc import Sequence
from typing import Any

import onnx


def has_channels_last(sizes: Sequence[Any]) -> bool:
    """Whether images are [N, H, W, C], as converters from TensorFlow write them.

    Args:
        sizes: of their four dimensions; anything but a number for one that is left open.
    """
    _, *outer, last = sizes
    return last in (1, 3, 4) and all(not isinstance(size, int) or not 0 < size <= 4 for size in outer)


def with_channels_first(model: Any) -> None:
    """Let a graph of images [N, H, W, C] take [N, C, H, W], which it transposes first."""
    constants = {each.name for each in model.graph.initializer}
    for images in model.graph.input:
        dimensions = images.type.tensor_type.shape.dim
        if images.name in constants or len(dimensions) != 4:
            continue
        if not has_channels_last([each.dim_value or None for each in dimensions]):
            continue
        transposed = f"{images.name}_channels_last"
        for node in model.graph.node:
            for at, name in enumerate(node.input):
                if name == images.name:
                    node.input[at] = transposed
        channels = dimensions.pop(3)
        dimensions.insert(1, channels)
        model.graph.node.insert(
            0, onnx.helper.make_node("Transpose", [images.name], [transposed], name=transposed, perm=[0, 2, 3, 1])
        )


def softmax_of_outputs(model: Any) -> dict[str, Any]:
    """For each output [N, classes] that comes from a softmax, which nothing else reads: the node."""
    made = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for output in model.graph.output:
        node = made.get(output.name)
        while node is not None and node.op_type == "Identity":
            node = made.get(node.input[0])
        if node is None or node.op_type != "Softmax" or len(output.type.tensor_type.shape.dim) not in (0, 2):
            continue
        readers = [each for each in model.graph.node if node.output[0] in each.input]
        axes = [each.i for each in node.attribute if each.name == "axis"]
        if axes in ([], [1], [-1]) and all(each.op_type == "Identity" for each in readers):
            found[output.name] = node
    return found


def with_logits(model: Any) -> None:
    """Let a graph yield what its last softmax takes: logits instead of probabilities."""
    for node in softmax_of_outputs(model).values():
        node.op_type = "Identity"
        del node.attribute[:]
