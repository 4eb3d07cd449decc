"""Arithmetic, comparisons and activation functions, element by element."""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bitsweep.graphs.onnx.reading import OnnxNode
from bitsweep.graphs.onnx.values import Operator, Value, as_tensor, operand, require


def binary(on_tensors: Callable[[Any, Any], Any], on_sizes: Callable[[Any, Any], Any] | None = None) -> Operator:
    """An operation on two values, or on two arrays of sizes."""

    def call(node: OnnxNode, x: Value, y: Value) -> Value:
        if not isinstance(x, Tensor) and not isinstance(y, Tensor):
            result = np.vectorize(on_sizes or on_tensors, otypes=[object])(x, y)
            return np.asarray(result, dtype=object)
        x, y = operand(x), operand(y)
        result = on_tensors(x, y)
        assert isinstance(result, Tensor)
        return result

    return Operator(call, numbers=(0, 1))


def several(on_tensors: Callable[[Any, Any], Any], on_sizes: Callable[[Any, Any], Any] | None = None) -> Operator:
    """The same on any number of values, one after the other."""
    pair = binary(on_tensors, on_sizes)
    return Operator(lambda node, *values: functools.reduce(lambda x, y: pair.call(node, x, y), values))


def unary(on_tensor: Callable[[Tensor], Tensor], on_sizes: Callable[[Any], Any] | None = None) -> Operator:
    """An operation on one value."""

    def call(node: OnnxNode, x: Value) -> Value:
        if isinstance(x, Tensor):
            return on_tensor(x)
        return (
            np.asarray(np.vectorize(on_sizes, otypes=[object])(x), dtype=object)
            if on_sizes
            else on_tensor(as_tensor(x).float())
        )

    return Operator(call)


def _divide(x: Any, y: Any) -> Any:
    whole = all(not isinstance(each, Tensor) or not each.is_floating_point() for each in (x, y)) and not any(
        isinstance(each, float) for each in (x, y)
    )
    return torch.div(x, y, rounding_mode="trunc") if whole else x / y


def _extreme(which: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def call(x: Any, y: Any) -> Any:
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            return which(x, y)
        x, y = (x, y) if isinstance(x, Tensor) else (y, x)
        return x.clamp(min=y) if which is torch.maximum else x.clamp(max=y)

    return call


def power(x: Any, y: Any) -> Any:
    """Squares and roots as such."""
    if isinstance(y, Tensor) and y.ndim == 0 and not isinstance(y, torch.nn.Parameter):
        y = float(y)
    return torch.pow(x, y)


def clip(node: OnnxNode, x: Value, lo: Any = None, hi: Any = None) -> Value:
    """With the ends that are given: as inputs, or as attributes in older files."""
    lo, hi = (node.get(name) if end is None else end.item() for name, end in (("min", lo), ("max", hi)))
    if not isinstance(x, Tensor):
        return np.clip(x, lo, hi)
    if lo == 0 and hi is None:
        return F.relu(x)
    if lo == 0 and hi == 6:
        return F.relu6(x)
    return x if lo is None and hi is None else torch.clamp(x, lo, hi)


def softmax(function: Callable[..., Tensor]) -> Operator:
    """Along one axis; before opset 13 along all that follow it, too."""

    def call(node: OnnxNode, x: Tensor) -> Tensor:
        if node.opset >= 13:
            return function(x, dim=node.get("axis", -1))
        axis = node.get("axis", 1) % x.ndim
        if math.prod(x.shape[axis + 1 :]) == 1:
            return function(x, dim=axis)
        return function(x.flatten(axis), dim=axis).reshape(x.shape)

    return Operator(call)


def hard_sigmoid(node: OnnxNode, x: Tensor) -> Tensor:
    """PyTorch's own where the slope is its."""
    slope, offset = node.get("alpha", 0.2), node.get("beta", 0.5)
    if math.isclose(slope, 1 / 6, rel_tol=1e-5) and offset == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * slope + offset, 0.0, 1.0)


def parametric_relu(node: OnnxNode, x: Tensor, slope: Value) -> Tensor:
    """A slope for each channel, or one."""
    slope = as_tensor(slope)
    channels = (x.shape[1], *[1] * (x.ndim - 2)) if x.ndim > 1 else ()
    if slope.numel() == 1 or slope.shape in (channels, channels[:1]):
        return F.prelu(x, slope.flatten())
    return torch.where(x > 0, x, x * slope)


def cast(node: OnnxNode, x: Value, *like: Value) -> Value:
    """Floats stay float32, and sizes sizes where they remain whole."""
    floats = node.get("to", 1) in (1, 10, 11, 16) if node.op == "Cast" else isinstance(like[0], Tensor)
    if not isinstance(x, Tensor):
        known = all(isinstance(each, int | bool | np.generic) for each in x.flat)
        return as_tensor(x).float() if floats and known else x
    if floats:
        return x if x.dtype == torch.float32 else x.float()
    return x.bool() if node.get("to") == 9 else x.to(torch.int64)


def where(node: OnnxNode, condition: Value, x: Value, y: Value) -> Value:
    """Sizes where all three are."""
    if not isinstance(condition, Tensor) and not isinstance(x, Tensor) and not isinstance(y, Tensor):
        return np.asarray(np.where(condition.astype(bool), x, y), dtype=object)
    return torch.where(as_tensor(condition).bool(), operand(x), operand(y))


def gelu(node: OnnxNode, x: Tensor) -> Tensor:
    """Exact, or by the tanh."""
    return F.gelu(x, approximate=node.get("approximate", "none"))


_remainder = binary(torch.remainder, operator.mod)
_remainder_as_in_c = binary(torch.fmod, math.fmod)


def modulo(node: OnnxNode, x: Value, y: Value) -> Value:
    """With the sign of the divisor, or as C has it."""
    of: Value = (_remainder_as_in_c if node.get("fmod", 0) else _remainder).call(node, x, y)
    return of


def selu(node: OnnxNode, x: Tensor) -> Tensor:
    """PyTorch's own with its constants."""
    alpha, gamma = node.get("alpha", 1.67326319), node.get("gamma", 1.05070102)
    if math.isclose(alpha, 1.67326319, rel_tol=1e-6) and math.isclose(gamma, 1.05070102, rel_tol=1e-6):
        return F.selu(x)
    return F.elu(x, alpha) * float(gamma)


def dropout(node: OnnxNode, x: Value, ratio: Value | None = None, training: Value | None = None) -> Value:
    """Nothing, outside of training."""
    require(node, training is None or not bool(np.any(training)), "drops values; export in evaluation mode")
    return x


def shrink(node: OnnxNode, x: Tensor) -> Tensor:
    """Towards 0 by ``bias``, and 0 within ``lambd`` of it."""
    limit, bias = node.get("lambd", 0.5), node.get("bias", 0.0)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, 0.0))


def is_infinite(node: OnnxNode, x: Value) -> Tensor:
    """Where one of the infinities that are asked for is."""
    x = as_tensor(x)
    found: Tensor = torch.isneginf(x) & bool(node.get("detect_negative", 1))
    return found | torch.isposinf(x) & bool(node.get("detect_positive", 1))


OPERATORS: dict[str, Operator] = {
    "Add": binary(operator.add),
    "Sub": binary(operator.sub),
    "Mul": binary(operator.mul),
    "Div": binary(_divide, operator.floordiv),
    "Mod": Operator(modulo),
    "Pow": binary(power, operator.pow),
    "Sum": several(operator.add),
    "Mean": Operator(lambda node, *x: functools.reduce(operator.add, x) / len(x)),
    "Max": several(_extreme(torch.maximum), max),
    "Min": several(_extreme(torch.minimum), min),
    "Equal": binary(operator.eq),
    "Greater": binary(operator.gt),
    "GreaterOrEqual": binary(operator.ge),
    "Less": binary(operator.lt),
    "LessOrEqual": binary(operator.le),
    "And": binary(operator.and_),
    "Or": binary(operator.or_),
    "Xor": binary(operator.xor),
    "Not": unary(torch.logical_not, operator.not_),
    "Abs": unary(torch.abs, abs),
    "Neg": unary(torch.neg, operator.neg),
    "Sqrt": unary(torch.sqrt),
    "Exp": unary(torch.exp),
    "Log": unary(torch.log),
    "Erf": unary(torch.erf),
    "Reciprocal": unary(torch.reciprocal),
    "Floor": unary(torch.floor, math.floor),
    "Ceil": unary(torch.ceil, math.ceil),
    "Round": unary(torch.round, round),
    "Sign": unary(torch.sign),
    "Sin": unary(torch.sin),
    "Cos": unary(torch.cos),
    "Tan": unary(torch.tan),
    "Asin": unary(torch.asin),
    "Acos": unary(torch.acos),
    "Atan": unary(torch.atan),
    "Sinh": unary(torch.sinh),
    "Cosh": unary(torch.cosh),
    "Asinh": unary(torch.asinh),
    "Acosh": unary(torch.acosh),
    "Atanh": unary(torch.atanh),
    "IsNaN": unary(torch.isnan),
    "IsInf": Operator(is_infinite),
    "Identity": Operator(lambda node, x: x),
    "Dropout": Operator(dropout, fixed=(1, 2)),
    "Cast": Operator(cast),
    "CastLike": Operator(cast),
    "Where": Operator(where, numbers=(1, 2)),
    "Relu": unary(F.relu),
    "LeakyRelu": Operator(lambda node, x: F.leaky_relu(x, node.get("alpha", 0.01))),
    "PRelu": Operator(parametric_relu, weighted=True),
    "ThresholdedRelu": Operator(lambda node, x: F.threshold(x, node.get("alpha", 1.0), 0.0)),
    "Shrink": Operator(shrink),
    "Elu": Operator(lambda node, x: F.elu(x, node.get("alpha", 1.0))),
    "Celu": Operator(lambda node, x: F.celu(x, node.get("alpha", 1.0))),
    "Selu": Operator(selu),
    "Sigmoid": unary(torch.sigmoid),
    "Tanh": unary(torch.tanh),
    "Softplus": unary(F.softplus),
    "Softsign": unary(F.softsign),
    "HardSigmoid": Operator(hard_sigmoid),
    "HardSwish": unary(F.hardswish),
    "Mish": unary(F.mish),
    "Gelu": Operator(gelu),
    "com.microsoft.Gelu": Operator(gelu),
    "com.microsoft.QuickGelu": Operator(lambda node, x: x * torch.sigmoid(node.get("alpha", 1.702) * x)),
    "Silu": unary(F.silu),
    "Swish": Operator(
        lambda node, x: F.silu(x) if node.get("alpha", 1.0) == 1 else x * torch.sigmoid(node.get("alpha") * x)
    ),
    "Clip": Operator(clip, fixed=(1, 2)),
    "Softmax": softmax(F.softmax),
    "LogSoftmax": softmax(F.log_softmax),
}
