"""What rewrites of ONNX graphs ask of values."""

import onnx_ir as ir

from bitsweep.results import Array


def constant(value: ir.Value | None) -> Array | None:
    """What a value is in every run, if that is known."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def made_by(value: ir.Value | None, *operations: str) -> ir.Node | None:
    """The node that a value comes from through the given operations, the nearest first."""
    node = None
    for operation in operations:
        node = None if value is None else value.producer()
        if node is None or node.op_type != operation:
            return None
        value = node.inputs[0]
    return node


def same_grid(one: ir.Node, other: ir.Node | None) -> bool:
    """Whether two nodes dequantize codes of the same type with the same scale and zero point."""
    if other is None or len(one.inputs) != len(other.inputs):
        return False
    pairs = [(constant(a), constant(b)) for a, b in zip(one.inputs[1:], other.inputs[1:], strict=True)]
    return all(a is not None and b is not None and a.dtype == b.dtype and (a == b).all() for a, b in pairs)


def only_reader(value: ir.Value, operation: str) -> ir.Node | None:
    """The node that alone reads a value, if it is such an operation."""
    readers = [reader for reader, _ in value.uses()]
    return readers[0] if len(readers) == 1 and readers[0].op_type == operation else None
