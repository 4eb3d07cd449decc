"""Operations that move values, and those on the sizes of tensors."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bitsweep.graphs.onnx.reading import OnnxNode
from bitsweep.graphs.onnx.values import Operator, Value, as_sizes, as_tensor, as_value, axes_of, require
from bitsweep.results import Array


def constant(node: OnnxNode) -> Value:
    """What is written in the file."""
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        if (given := node.get(name)) is not None:
            floats = name.startswith("value_float")
            return as_value(given if name == "value" else np.asarray(given, np.float32 if floats else np.int64))
    require(node, False, "holds no numbers")
    raise AssertionError


def constant_of_shape(node: OnnxNode, shape: Value) -> Value:
    """One value everywhere."""
    fill = np.asarray(node.get("value", np.zeros(1, np.float32))).reshape(-1)[0]
    sizes = as_sizes(shape)
    if fill.dtype.kind == "f":
        return torch.full(sizes, float(fill))
    return np.full(sizes, fill.item(), dtype=object)


def shape_of(node: OnnxNode, x: Value) -> Array:
    """The sizes of a tensor, or some of them."""
    sizes = list(x.shape)[node.get("start", 0) : node.get("end")]
    found = np.empty(len(sizes), dtype=object)
    found[:] = sizes
    return found


def reshape(node: OnnxNode, x: Value, shape: Value | None = None) -> Value:
    """Where a size is 0, that of the same dimension stays."""
    sizes = as_sizes(shape) if shape is not None else list(node.get("shape"))
    if not node.get("allowzero", 0):
        sizes = [x.shape[dim] if isinstance(size, int) and size == 0 else size for dim, size in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(node: OnnxNode, x: Tensor) -> Tensor:
    """To a matrix."""
    axis = node.get("axis", 1)
    if axis == 1:
        return x.flatten(1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), -1)


def transpose(node: OnnxNode, x: Value) -> Value:
    """In the order of the axes that is given, or reversed."""
    order = node.get("perm") or list(reversed(range(x.ndim)))
    return x.permute(order) if isinstance(x, Tensor) else x.transpose(order)


def concat(node: OnnxNode, *parts: Value) -> Value:
    """Sizes where all parts are."""
    if not any(isinstance(part, Tensor) for part in parts):
        return np.concatenate(parts, axis=node.get("axis", 0))
    like = next(part for part in parts if isinstance(part, Tensor))
    return torch.cat([as_tensor(part, like=like) for part in parts], dim=node.get("axis", 0))


def split(node: OnnxNode, x: Value, sizes: Value | None = None) -> tuple[Value, ...]:
    """Into parts of given sizes, or of one."""
    axis = node.get("axis", 0)
    given = as_sizes(sizes) if sizes is not None else node.get("split")
    if given is None:
        number, whole = len(node.outputs), int(x.shape[axis])
        each = math.ceil(whole / number)
        given = [min(each, whole - start) for start in range(0, whole, each)]
    given = [int(size) for size in given]
    if isinstance(x, Tensor):
        return torch.split(x, given, dim=axis)
    return tuple(np.split(x, np.cumsum(given)[:-1], axis=axis))


def take_slices(node: OnnxNode, x: Value, *given: Value | None) -> Value:
    """From starts to ends along some axes, in steps."""
    starts, ends, axes, steps = (
        (*given, None, None)[:4] if given else (node.get("starts"), node.get("ends"), node.get("axes"), None)
    )
    first, last = (list(each) if isinstance(each, list) else as_sizes(each) for each in (starts, ends))  # type: ignore[arg-type]
    along = range(len(first)) if axes is None else [int(each) for each in np.asarray(axes).flat]
    strides = [1] * len(first) if steps is None else [int(each) for each in as_sizes(steps)]
    for start, end, axis, step in zip(first, last, along, strides, strict=True):
        if not isinstance(x, Tensor):
            x = x[tuple([slice(None)] * (axis % x.ndim) + [slice(start, end, step)])]
            continue
        if step < 0:
            require(node, step == -1 and isinstance(x.shape[axis], int), f"step {step}")
            size = int(x.shape[axis])
            start, end = (min(max(each + size if each < 0 else each, -1), size - 1) for each in (start, end))
            x, start, end, step = x.flip(axis), size - 1 - start, size - 1 - end, 1
        index: list[Any] = [slice(None)] * x.ndim
        index[axis] = slice(start, None if isinstance(end, int) and end >= 2**31 - 1 else end, step)
        x = x[tuple(index)]
    return x


def gather(node: OnnxNode, x: Value, index: Value) -> Value:
    """Along one axis."""
    axis = node.get("axis", 0)
    if not isinstance(x, Tensor) and not isinstance(index, Tensor):
        return np.asarray(np.take(x, index.astype(np.int64), axis=axis), dtype=object)
    x = as_tensor(x)
    axis %= x.ndim
    if not isinstance(index, Tensor) and index.ndim == 0:
        return x.select(axis, int(index.item()))
    positions = _from_the_start(index, x.shape[axis])
    taken = x.index_select(axis, positions.flatten())
    return taken.reshape(*x.shape[:axis], *positions.shape, *x.shape[axis + 1 :])


def _from_the_start(index: Value, size: int) -> Tensor:
    """Indices of which negative ones were counted from the end."""
    given = as_tensor(index).to(torch.int64)
    return torch.where(given < 0, given + size, given)


def gather_elements(node: OnnxNode, x: Tensor, index: Value) -> Tensor:
    """A value for each index."""
    axis = node.get("axis", 0)
    return torch.gather(x, axis, _from_the_start(index, x.shape[axis]))


def gather_nd(node: OnnxNode, x: Value, index: Value) -> Tensor:
    """A value, or a part, for each tuple of indices along the first dimensions; ``batch_dims`` of them go together."""
    source, places = as_tensor(x), as_tensor(index).to(torch.int64)
    together = [
        torch.arange(source.shape[of]).reshape([-1 if at == of else 1 for at in range(places.ndim - 1)])
        for of in range(node.get("batch_dims", 0))
    ]
    return source[(*together, *places.unbind(-1))]


def scatter(node: OnnxNode, x: Value, index: Value, updates: Value) -> Tensor:
    """Other values at some places, or added there."""
    reduction, into, places = node.get("reduction", "none"), as_tensor(x), as_tensor(index).to(torch.int64)
    require(node, reduction in ("none", "add"), f"reduction={reduction}")
    return into.index_put(places.unbind(-1), as_tensor(updates, like=into), accumulate=reduction == "add")


#: Names of ONNX -> those of PyTorch.
_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_elements(node: OnnxNode, x: Value, index: Value, updates: Value) -> Tensor:
    """Another value for each index, or one that both make."""
    into, axis = as_tensor(x), node.get("axis", 0)
    places, values = _from_the_start(index, into.shape[axis]), as_tensor(updates, like=into)
    if (reduction := node.get("reduction", "none")) == "none":
        return into.scatter(axis, places, values)
    return into.scatter_reduce(axis, places, values, _REDUCTIONS[reduction])


def running_sum(node: OnnxNode, x: Value, axis: Value) -> Tensor:
    """The sum of all values up to one, or of those before it; from the end with ``reverse``."""
    x, along = as_tensor(x), int(np.asarray(axis).item())
    x = x.flip(along) if node.get("reverse", 0) else x
    total = x.cumsum(along) - (x if node.get("exclusive", 0) else 0)
    return total.flip(along) if node.get("reverse", 0) else total


def squeeze(node: OnnxNode, x: Value, given: Value | None = None) -> Value:
    """Some dimensions of size 1, or all."""
    axes = axes_of(node, given)
    if not isinstance(x, Tensor):
        return x.squeeze(None if axes is None else tuple(axes))
    if axes is None:
        axes = [dim for dim, size in enumerate(x.shape) if dim and isinstance(size, int) and size == 1]
    return x.squeeze(tuple(axes))


def unsqueeze(node: OnnxNode, x: Value, given: Value | None = None) -> Value:
    """New dimensions of size 1."""
    axes = axes_of(node, given) or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis) if isinstance(x, Tensor) else np.expand_dims(x, axis)
    return x


def expand(node: OnnxNode, x: Value, shape: Value) -> Value:
    """Repeated along dimensions of size 1, and new ones."""
    sizes = as_sizes(shape)
    if not isinstance(x, Tensor):
        return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(sizes)))
    sizes = [1] * (x.ndim - len(sizes)) + sizes
    own = [1] * (len(sizes) - x.ndim) + list(x.shape)
    wanted = [
        there if isinstance(asked, int) and asked == 1 else asked for asked, there in zip(sizes, own, strict=True)
    ]
    return x.expand(wanted)


def tile(node: OnnxNode, x: Value, repeats: Value) -> Value:
    """Several times along each axis."""
    times = as_sizes(repeats)
    return x.repeat(times) if isinstance(x, Tensor) else np.tile(x, times)


def pad(
    node: OnnxNode, x: Tensor, pads: Value | None = None, value: Array | None = None, axes: Value | None = None
) -> Tensor:
    """Around any axes, by a number or by the image itself."""
    amounts = [int(each) for each in (as_sizes(pads) if pads is not None else node.get("pads"))]
    along = range(x.ndim) if axes is None else [int(each) % x.ndim for each in as_sizes(axes)]
    half = len(amounts) // 2
    around = dict(zip(along, zip(amounts[:half], amounts[half:], strict=True), strict=True))
    used = [dim for dim, each in around.items() if any(each)]
    if not used:
        return x
    flat = [amount for dim in range(x.ndim - 1, min(used) - 1, -1) for amount in around.get(dim, (0, 0))]
    mode = node.get("mode", "constant")
    if mode == "constant":
        number = node.get("value", 0.0) if value is None or not value.size else value.item()
        return F.pad(x, flat, value=float(number))
    modes = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    require(node, mode in modes, f"mode={mode}")
    return F.pad(x, flat, mode=modes[mode])


def value_range(node: OnnxNode, start: Value, end: Value, step: Value) -> Value:
    """Numbers in equal steps."""
    first, last, by = (each.item() for each in (start, end, step))
    if isinstance(first, float):
        return torch.arange(first, last, by)
    return np.arange(first, last, by).astype(object)


def depth_to_space(node: OnnxNode, x: Tensor) -> Tensor:
    """Blocks of channels become blocks of pixels."""
    block, channels = node.get("blocksize"), int(x.shape[1])
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    height, width = x.shape[2:]
    apart = x.reshape(-1, block, block, channels // block**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return apart.reshape(-1, channels // block**2, height * block, width * block)


def space_to_depth(node: OnnxNode, x: Tensor) -> Tensor:
    """The other way."""
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_unshuffle(x, node.get("blocksize"))
    block, channels, height, width = node.get("blocksize"), *map(int, x.shape[1:])
    apart = x.reshape(-1, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return apart.reshape(-1, channels * block**2, height // block, width // block)


def triangle(node: OnnxNode, x: Tensor, diagonal: Value | None = None) -> Tensor:
    """What lies above, or below, a diagonal."""
    of = 0 if diagonal is None else int(diagonal.item())
    return torch.triu(x, of) if node.get("upper", 1) else torch.tril(x, of)


OPERATORS: dict[str, Operator] = {
    "Constant": Operator(constant),
    "ConstantOfShape": Operator(constant_of_shape),
    "Shape": Operator(shape_of),
    "Size": Operator(lambda node, x: np.asarray(math.prod(x.shape), dtype=object)),
    "Reshape": Operator(reshape),
    "Flatten": Operator(flatten),
    "Transpose": Operator(transpose),
    "Concat": Operator(concat),
    "Split": Operator(split),
    "Slice": Operator(take_slices),
    "Gather": Operator(gather),
    "GatherElements": Operator(gather_elements),
    "GatherND": Operator(gather_nd),
    "ScatterND": Operator(scatter),
    "ScatterElements": Operator(scatter_elements),
    "CumSum": Operator(running_sum, fixed=(1,)),
    "Squeeze": Operator(squeeze),
    "Unsqueeze": Operator(unsqueeze),
    "Expand": Operator(expand),
    "Tile": Operator(tile),
    "Pad": Operator(pad, fixed=(2,)),
    "Range": Operator(value_range),
    "DepthToSpace": Operator(depth_to_space),
    "SpaceToDepth": Operator(space_to_depth),
    "Trilu": Operator(triangle),
}
