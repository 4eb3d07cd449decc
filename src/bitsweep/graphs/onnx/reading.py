"""ONNX files as plain data: the nodes of one graph, in order, and its constants."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, inliner, numpy_helper

from bitsweep.errors import ConfigError, first_line
from bitsweep.graphs.onnx.conventions import with_channels_first, with_logits
from bitsweep.results import Array

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
#: Before it, operators broadcast by an axis that they name.
_OLDEST = 7
#: Names of the two domains of operators that are known; the standard one has two.
_DOMAINS = {"": "", "ai.onnx": "", "com.microsoft": "com.microsoft."}
#: Operations of classifiers that nothing here computes, which planning refuses without importing those that are.
NOT_COMPUTED = {
    "Attention", "Compress", "DeformConv", "GRU", "GridSample", "LSTM", "NonMaxSuppression", "NonZero", "OneHot", "RNN",
    "RoiAlign", "TopK", "Unique", "com.microsoft.Attention", "com.microsoft.MultiHeadAttention",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OnnxNode:
    """One operation.

    Attributes:
        op: its name, after that of its domain where it is not ONNX's own, e.g. ``com.microsoft.QGemm``.
        inputs, outputs: names of tensors; inputs that are left out are empty.
        opset: version of ONNX's operators that the file is written in.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    opset: int = 21

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(attribute, default)

    def input(self, number: int) -> str:
        """The name of an input; empty where it is left out."""
        return self.inputs[number] if number < len(self.inputs) else ""

    def __str__(self) -> str:
        return f"{self.op} {self.name}".strip()


@dataclass(frozen=True, kw_only=True)
class OnnxGraph:
    """A graph from images to outputs.

    Attributes:
        constants: by the names of their tensors; floats are float32, integers as they are.
        shape: [N, C, H, W] of the images, None where the file leaves a size open.
    """

    nodes: tuple[OnnxNode, ...]
    constants: Mapping[str, Array]
    images: str
    shape: tuple[int | None, ...]
    outputs: tuple[str, ...]


def read_onnx(path: Path) -> OnnxGraph:
    """The graph of a file.

    Raises:
        ConfigError: it is no ONNX file, is damaged, or holds something else than a network for images.
    """
    model = load_onnx(path)
    graph, versions = model.graph, [each.version for each in model.opset_import if each.domain in ("", "ai.onnx")]
    if not versions:
        raise ConfigError("does not say which version of ONNX's operators it is for; export it again")
    constants = {each.name: _constant(each) for each in graph.initializer}
    images = image_input(model)
    return OnnxGraph(
        nodes=tuple(_in_order([_node(each, max(versions)) for each in graph.node], {images.name, *constants})),
        constants=constants,
        images=images.name,
        shape=shape_of(images),
        outputs=tuple(each.name for each in graph.output),
    )


def load_onnx(path: Path, *, tensors: bool = True, as_written: bool = False) -> Any:
    """The content of a file, with functions of its own written out, from images [N, C, H, W] to logits.

    Args:
        tensors: whether to read what lies in files beside it, too.
        as_written: whether to leave images with their channels last, and probabilities.

    Raises:
        ConfigError: it is no ONNX file, or is damaged.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        if not model.graph.node:
            raise ValueError("it has no graph")
        _require_readable(model, path)
        if tensors:
            onnx.load_external_data_for_model(model, str(path.parent))
        model = inliner.inline_local_functions(model) if model.functions else model
        if not as_written:
            with_channels_first(model)
            with_logits(model)
        return model
    except ConfigError:
        raise
    except Exception as error:  # protobuf, the checker and the file system raise errors of their own
        raise ConfigError(f"cannot be read as ONNX; export it again: {first_line(error)}") from error


def _require_readable(model: Any, path: Path) -> None:
    """Refuse other versions of operators, a graph without outputs, and weights in files that are not beside it."""
    versions = [each.version for each in model.opset_import if each.domain in ("", "ai.onnx")]
    newest = onnx.defs.onnx_opset_version()
    if versions and not _OLDEST <= max(versions) <= newest:
        raise ConfigError(
            f"is written for opset {max(versions)}; {_OLDEST} to {newest} can be read: export it for one of these, or "
            "convert it with onnx.version_converter"
        )
    if not model.graph.output:
        raise ConfigError("has no output; export it again, with its logits as the output")
    for name in sorted(_external(model)):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ConfigError(f"its weights are in {name}, which is not in its folder; save it with them beside it")
        if not (path.parent / name).is_file():
            raise ConfigError(f"its weights are in {name}, which is not beside it; put that file there, too")


def _external(model: Any) -> set[str]:
    """The files that the weights of a model lie in, as it names them."""
    external = [each for each in model.graph.initializer if each.data_location == TensorProto.EXTERNAL]
    return {entry.value for tensor in external for entry in tensor.external_data if entry.key == "location"}


def require_computed(operations: Collection[str], known: Collection[str]) -> None:
    """Refuse operations that are not known."""
    if unknown := sorted(set(operations) - set(known)):
        raise ConfigError(f"nothing here computes {', '.join(unknown)}; export it with other operators")


def check_onnx(path: Path) -> Any:
    """The content of a file, which nothing is wrong with that can be seen without building its network.

    Raises:
        ConfigError: it is no ONNX file, is damaged, computes what nothing here does, or holds NaN.
    """
    model = load_onnx(path, tensors=False)
    operations = {_node(each, _OLDEST).op for each in model.graph.node}
    require_computed(operations, operations - NOT_COMPUTED)
    for each in model.graph.initializer:
        if each.data_location != TensorProto.EXTERNAL:
            _constant(each)
    return model


def files_of(path: Path) -> list[Path]:
    """An ONNX file, and those beside it that its weights lie in.

    Raises:
        ConfigError: it is no ONNX file, or is damaged.
    """
    names = _external(load_onnx(path, tensors=False))
    return [path, *(path.parent / name for name in sorted(names))]


def is_quantized(model: Any) -> bool:
    """Whether some tensors of a file are codes."""
    signs = ("Quantize", "QLinear", "QGemm", "Integer")
    return any(sign in node.op_type for node in model.graph.node for sign in signs)


def shape_of(images: Any) -> tuple[int | None, ...]:
    """The sizes of an input, None for those that are left open."""
    sizes = images.type.tensor_type.shape.dim
    return tuple(size.dim_value if size.HasField("dim_value") and size.dim_value > 0 else None for size in sizes)


def image_input(model: Any) -> Any:
    """The one input of a graph.

    Raises:
        ConfigError: there are several, or it takes no float images.
    """
    constants = {each.name for each in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(each.name for each in inputs) or "none"
        raise ConfigError(f"one input is needed, the images; it has {names}")
    (images,) = inputs
    kind, rank = images.type.tensor_type.elem_type, len(images.type.tensor_type.shape.dim)
    if kind not in _FLOATS or rank != 4:
        known = f"of {rank} dimensions" if images.type.tensor_type.HasField("shape") else "of a shape that is left open"
        raise ConfigError(
            f"{images.name} is {TensorProto.DataType.Name(kind)} {known}; float images [N, C, H, W] are needed"
        )
    return images


def _in_order(nodes: Sequence[OnnxNode], made: set[str]) -> list[OnnxNode]:
    """Every node behind those that make what it reads: converters append some of them at the end.

    Args:
        made: what is there before any of them.

    Raises:
        ConfigError: one reads what none of the others makes, or what is made from its own result.
    """
    ordered, waiting = list[OnnxNode](), list(nodes)
    while waiting:
        left = []
        for node in waiting:
            if made.issuperset(filter(None, node.inputs)):
                ordered.append(node)
                made |= {*node.outputs}
            else:
                left.append(node)
        if len(left) == len(waiting):
            missing = next(name for name in left[0].inputs if name and name not in made)
            raise ConfigError(f"{left[0]} reads {missing}, which nothing makes; export it again")
        waiting = left
    return ordered


def _node(node: Any, opset: int) -> OnnxNode:
    if node.domain not in _DOMAINS:
        raise ConfigError(f"{node.op_type} is an operation of {node.domain}, which nothing here knows")
    attributes = {each.name: _attribute(each, node) for each in node.attribute}
    return OnnxNode(
        op=_DOMAINS[node.domain] + node.op_type,
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        attributes=attributes,
        name=node.name,
        opset=opset,
    )


def _attribute(attribute: Any, node: Any) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        return _constant(value)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.GraphProto):
        named = f"{node.op_type} {node.name}".strip()
        raise ConfigError(
            f"{named} runs a graph of its own, which nothing here does; export it for one size of images, no branches"
        )
    return list(value) if isinstance(value, list | tuple) or hasattr(value, "_values") else value


def _constant(tensor: Any) -> Array:
    """The values of a tensor. Infinities may be limits and masks, but what is no number comes of a failed training.

    Raises:
        ConfigError: it holds no numbers that a network for images computes with.
    """
    values = numpy_helper.to_array(tensor)
    named = tensor.name or "a constant"
    if values.dtype.kind in "cOSU":
        kind = TensorProto.DataType.Name(tensor.data_type)
        raise ConfigError(f"{named} holds {kind}, which nothing here computes with; export it with real numbers")
    values = _floats_as_float32(values)
    if values.dtype == np.float32 and (bad := int(np.isnan(values).sum())):
        raise ConfigError(f"{named} holds NaN ({bad} of {values.size} values): take another file")
    return values


def _floats_as_float32(values: Array) -> Array:
    """Half and double precision as float32; codes of fewer than 8 bits as bytes, other integers as they are."""
    kind = values.dtype
    if kind.kind == "f" or kind.name in ("bfloat16", "float16"):
        return values.astype(np.float32)
    return values
