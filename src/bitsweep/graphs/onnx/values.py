"""What flows through an ONNX graph while PyTorch runs or traces it.

Tensors of floats and codes are tensors. Sizes, and all that graphs compute from sizes to shape tensors by, are arrays
of Python's own integers, or of what stands for them while a number of images is open: so a trace sees numbers where
the network that was exported had numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitsweep.errors import ConfigError
from bitsweep.graphs.onnx.reading import OnnxNode
from bitsweep.results import Array

#: A tensor, or an array (of objects) of sizes.
Value = Tensor | Array


@dataclass(frozen=True)
class Operator:
    """How an operation is computed.

    Attributes:
        call: ``(node, *inputs)`` gives the output, or a tuple of them; inputs that are left out are None.
        fixed: positions of the inputs that it needs as arrays of known values.
        numbers: positions of those that it takes as such arrays where they hold one value.
        weighted: whether constants among its inputs are learned.
    """

    call: Callable[..., Any]
    fixed: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()
    weighted: bool = False


def require(node: OnnxNode, holds: bool, reason: str) -> None:
    """Refuse a use of an operation.

    Raises:
        ConfigError: it does not hold.
    """
    if not holds:
        raise ConfigError(f"{node}: {reason}")


def as_value(values: Array) -> Value:
    """What a constant is: a tensor of floats or codes, or sizes."""
    codes = values.dtype in (np.int8, np.uint8, np.int16, np.uint16) or (values.dtype == np.int32 and values.ndim > 1)
    if codes or values.dtype.kind == "f":
        return torch.from_numpy(np.array(values))
    if values.dtype.kind not in "iub":  # codes of fewer than 8 bits
        return torch.from_numpy(values.astype(np.int8 if values.dtype.name.startswith("int") else np.uint8))
    return values.astype(object)


def as_constant(value: Value) -> Array:
    """The array that a value is kept as."""
    if isinstance(value, Tensor):
        return value.detach().numpy()
    kind = bool if value.size and all(isinstance(each, bool | np.bool_) for each in value.flat) else None
    if kind is None and any(isinstance(each, float) for each in value.flat):
        return value.astype(np.float32)
    return value.astype(kind or np.int64)


def as_tensor(value: Any, *, like: Tensor | None = None) -> Tensor:
    """A tensor of a value; sizes become whole numbers. It has the type of another tensor where one is given."""
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value)
    if array.dtype == object and any(not isinstance(each, int | float | bool | np.generic) for each in array.flat):
        # Some are sizes that are open.
        flat = [torch.as_tensor(each) if isinstance(each, int) else torch.scalar_tensor(each) for each in array.flat]
        made = torch.stack([each.to(torch.int64) for each in flat]).reshape(array.shape)
    else:
        floats = any(isinstance(each, float | np.floating) for each in array.flat) if array.dtype == object else False
        kind = np.float32 if floats else bool if array.size and isinstance(array.flat[0], bool | np.bool_) else np.int64
        made = torch.from_numpy(array.astype(kind if array.dtype == object else array.dtype).copy())
    return made if like is None else made.to(like.dtype)


def as_sizes(value: Value) -> list[Any]:
    """Sizes as a list."""
    if isinstance(value, Tensor):
        return [int(each) for each in value.flatten().tolist()]
    return list(value.flatten())


def operand(value: Any) -> Any:
    """A value as one of two that are broadcast: a number where it is one, as networks have numbers in their code."""
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value)
    return array.flat[0] if array.size == 1 and array.ndim == 0 else as_tensor(array)


def axes_of(node: OnnxNode, given: Value | None, default: Sequence[int] | None = None) -> list[int] | None:
    """Axes, an attribute in older files and an input in newer ones."""
    if given is not None:
        return [int(each) for each in as_sizes(given)]
    axes = node.get("axes", default)
    return None if axes is None else [int(each) for each in axes]
