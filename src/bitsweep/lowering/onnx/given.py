"""ONNX files of somebody else's for engines: the same graph, with the names of input and output that these know."""

from pathlib import Path

import onnx

from bitsweep.config.precision import FloatFormat
from bitsweep.errors import CompressionError
from bitsweep.graphs.onnx.reading import image_input, load_onnx
from bitsweep.lowering.onnx.export import ARITHMETIC, INPUT, OUTPUT


def write_given(file: Path, path: Path, *, floats: FloatFormat = "float32") -> None:
    """Copy a graph and its weights into one file.

    Args:
        floats: what the copy says that floats between codes are computed in.

    Raises:
        CompressionError: it has several outputs.
    """
    model = load_onnx(file)
    names = [each.name for each in model.graph.output]
    if len(names) > 1:
        raise CompressionError(f"{file}: has the outputs {', '.join(names)}; leave the logits alone in it")
    if len(model.graph.output[0].type.tensor_type.shape.dim) > 2:
        model.graph.node.append(onnx.helper.make_node("Flatten", names, [f"{names[0]}_flat"], axis=1))
        names = [f"{names[0]}_flat"]
    given = {image_input(model).name: INPUT, names[0]: OUTPUT}
    # Other tensors that have these names get others.
    renamed = {name: f"{name}_of_file" for name in given.values() if name not in given} | given
    del model.graph.output[:], model.graph.value_info[:]
    for node in model.graph.node:
        for tensors in (node.input, node.output):
            for at, name in enumerate(tensors):
                tensors[at] = renamed.get(name, name)
    for value in (*model.graph.input, *model.graph.initializer):
        value.name = renamed.get(value.name, value.name)
    model.graph.output.append(onnx.helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, None))
    onnx.helper.set_model_props(model, {ARITHMETIC: floats})
    onnx.save(model, path)
