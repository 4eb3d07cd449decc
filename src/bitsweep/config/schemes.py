"""Adapts a precision to kernels and processors that do not support it as it is."""

from dataclasses import replace

from bitsweep.config.precision import Grid, Precision, Scheme
from bitsweep.runtime.environment import Cpu, Gpu


def storage_only(precision: Precision, *, computes: bool, where: str) -> Scheme:
    """Scheme of a float precision: computed in that format where the hardware does, otherwise stored in it only."""
    assert not isinstance(precision.weights, Grid) and not isinstance(precision.activations, Grid)
    if precision.weights == "float32" or computes:
        return Scheme(weights=precision.weights, activations=precision.activations, arithmetic=precision.weights)
    stored = precision.weights
    why = f"{where} has no {stored} arithmetic: weights are stored as {stored} and computed in float32"
    return Scheme(weights=precision.weights, activations="float32", arithmetic="float32", why=why)


def float_arithmetic(precision: Precision, processor: Cpu | Gpu) -> Scheme:
    """Scheme of a float precision in an engine that computes all that the processor does, see ``storage_only``."""
    computes = processor.computes_fp16 if precision.weights == "float16" else processor.computes_bf16
    return storage_only(precision, computes=computes, where=f"this {processor}")


def reduce_range(precision: Precision, cpu: Cpu) -> Scheme:
    """Scheme of an 8-bit precision on integer kernels: 7-bit weights where sums of u8 x s8 products would saturate."""
    weights, activations = precision.weights, precision.activations
    assert isinstance(weights, Grid) and isinstance(activations, Grid)
    if weights.bits < 8 or activations.signed or not cpu.saturates_u8s8:
        return Scheme(weights=weights, activations=activations, arithmetic="integer")
    why = f"{cpu.isa} without VNNI saturates sums of two u8 x s8 products: weights have 7 bits"
    return Scheme(weights=replace(weights, bits=7), activations=activations, arithmetic="integer", why=why)


def signed_codes(precision: Precision, cpu: Cpu, *, engine: str) -> Scheme:
    """Scheme of an engine whose kernels read signed codes, compute floats in float32, and saturate no product."""
    weights, activations = precision.weights, precision.activations
    if not isinstance(weights, Grid) or not isinstance(activations, Grid):
        return storage_only(precision, computes=False, where=f"{engine} set to compute in float32 ({cpu.isa})")
    why = "" if activations.signed else f"{engine}'s kernels read signed activations"
    signed = replace(activations, signed=True)
    return Scheme(weights=weights, activations=signed, arithmetic="integer", yields_floats=False, why=why)


def beyond_byte_kernels(precision: Precision, backend: str) -> str | None:
    """Why an engine whose integer kernels multiply bytes by bytes cannot run a precision; None when it can."""
    weights, activations = precision.weights, precision.activations
    if not isinstance(weights, Grid) and not isinstance(activations, Grid):
        return None
    if not isinstance(weights, Grid) or not isinstance(activations, Grid):
        return (
            f"backend={backend} has no kernels for {weights} weights with {activations} activations: "
            "use backend=reference"
        )
    if max(weights.bits, activations.bits) > 8:
        return f"{precision.name} is simulated, no kernel takes codes of more than 8 bits: use backend=reference"
    return None
