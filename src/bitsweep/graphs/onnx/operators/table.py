"""All operations that are known, by their names."""

from bitsweep.graphs.onnx.operators import elementwise, layers, poolings, quantized, shapes
from bitsweep.graphs.onnx.values import Operator

OPERATORS: dict[str, Operator] = {
    **elementwise.OPERATORS,
    **layers.OPERATORS,
    **poolings.OPERATORS,
    **shapes.OPERATORS,
    **quantized.OPERATORS,
}
