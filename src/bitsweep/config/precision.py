"""To how many bits: number formats of weights and activations."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from bitsweep.config.configurable import NOT_IN_KEYS, Choice, configurable

FloatFormat = Literal["float32", "float16", "bfloat16"]


@configurable
class Grid:
    """The integer grid of a tensor: which codes there are, and what shares a scale.

    Attributes:
        bits: width of a code.
        signed: two's complement codes, or codes from zero.
        symmetric: zero point 0 (signed); one code fewer, so that the range is symmetric too.
        per_channel: one scale for each output channel, or one for the tensor.
        levels: number of codes of a symmetric grid that uses fewer than its bits offer, odd; 0 for all of them.
        depthwise_bits: of weights, what depthwise layers have at most; 0 for as many as the others.
    """

    bits: Annotated[int, Field(ge=2, le=16)]
    signed: bool
    symmetric: bool
    per_channel: bool = False
    levels: Annotated[int, Field(ge=0)] = 0
    depthwise_bits: Annotated[int, Field(ge=0, le=16)] = 0

    def __post_init__(self) -> None:
        if self.depthwise_bits == 1:
            raise ValueError("depthwise_bits=1 should be 0 for none, or at least 2")
        if self.levels and not (self.symmetric and self.levels % 2 and 3 <= self.levels < 1 << self.bits):
            raise ValueError(f"levels={self.levels} should be odd and at least 3, on a symmetric grid with room for it")

    def of_weights(self, shape: Sequence[int]) -> "Grid":
        """What weights of a shape lie on: those of a depthwise layer are [C, 1, ...], a kernel a channel."""
        if not self.depthwise_bits:
            return self
        depthwise = len(shape) > 2 and shape[1] == 1
        return replace(self, bits=min(self.bits, self.depthwise_bits) if depthwise else self.bits, depthwise_bits=0)

    @property
    def is_ternary(self) -> bool:
        """Whether its codes are -1, 0 and 1."""
        return self.symmetric and self.hi == 1

    @property
    def lo(self) -> int:
        """Smallest code."""
        if not self.signed:
            return 0
        if self.levels:
            return -(self.levels // 2)
        return -(1 << (self.bits - 1)) + (1 if self.symmetric else 0)

    @property
    def hi(self) -> int:
        """Largest code."""
        if self.levels:
            return self.levels // 2
        return (1 << (self.bits - 1 if self.signed else self.bits)) - 1

    def __str__(self) -> str:
        sign = "s" if self.signed else "u"
        granularity = "per-channel" if self.per_channel else "per-tensor"
        levels = f", {self.levels} levels" if self.levels else ""
        depthwise = f", {self.depthwise_bits} bits in depthwise layers" if self.depthwise_bits else ""
        return f"{sign}{self.bits} {granularity} {'symmetric' if self.symmetric else 'affine'}{levels}{depthwise}"


@configurable
class Precision(Choice):
    """Number formats of weights and activations: not how ranges are chosen (method) or which kernels run (backend)."""

    weights: Grid | FloatFormat
    activations: Grid | FloatFormat

    @property
    def is_integer(self) -> bool:
        """Whether weights are integer codes."""
        return isinstance(self.weights, Grid)


@configurable
class Scheme:
    """A precision resolved against what a backend's kernels take and what the CPU computes.

    Attributes:
        weights, activations: the formats that are really used.
        arithmetic: what multiplications are done in.
        fuses_functions: whether the engine computes hard-swish, SiLU and the like on the sums of the layer before, so
            that nothing is rounded between the two.
        yields_floats: whether integer kernels of linear layers can yield floats.
        why: in what the scheme differs from the precision asked for, and for what reason; empty when it does not.
    """

    weights: Grid | FloatFormat
    activations: Grid | FloatFormat
    arithmetic: Literal["float32", "float16", "bfloat16", "integer", "simulated"]
    fuses_functions: bool = False
    yields_floats: bool = True
    why: Annotated[str, NOT_IN_KEYS] = ""

    def __str__(self) -> str:
        return f"weights {self.weights}, activations {self.activations}, {self.arithmetic} arithmetic"


FLOAT32 = Scheme(weights="float32", activations="float32", arithmetic="float32")
