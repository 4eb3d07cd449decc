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
    """For each output that comes from a softmax over all classes, which nothing else reads: the node."""
    made = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for output in model.graph.output:
        node = made.get(output.name)
        while node is not None and node.op_type == "Identity":
            node = made.get(node.input[0])
        if node is None or node.op_type != "Softmax" or not _is_over_classes(node, output, model):
            continue
        if all(each.op_type == "Identity" for each in model.graph.node if node.output[0] in each.input):
            found[output.name] = node
    return found


def _is_over_classes(softmax: Any, output: Any, model: Any) -> bool:
    """Whether an output is [N, classes], but for dimensions of 1, and a softmax is over the classes."""
    sizes = [each.dim_value for each in output.type.tensor_type.shape.dim] or [0, 0]
    long = [axis for axis, size in enumerate(sizes) if axis and size != 1]
    axes = [each.i % len(sizes) for each in softmax.attribute if each.name == "axis"]
    if not axes:  # before opset 13, all from the second axis on
        version = max(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
        axes = long if version < 13 else [len(sizes) - 1]
    return len(long) == 1 and axes == long


def with_logits(model: Any) -> None:
    """Let a graph yield what its last softmax takes: logits instead of probabilities."""
    for node in softmax_of_outputs(model).values():
        node.op_type = "Identity"
        del node.attribute[:]
