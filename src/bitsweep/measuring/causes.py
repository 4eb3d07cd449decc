"""Why a compressed artifact is not faster than fp32, or less accurate, as far as measurements prove it."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bitsweep.config.precision import Scheme
from bitsweep.results import OpProfile, Table

#: Parts of names of operations that only change the format or the layout of a tensor.
CONVERSIONS = ("quantize", "convert", "cast", "reorder", "_to_copy", "to.dtype")
#: What takes a smaller share of the latency than this explains nothing.
WORTH_TELLING = 0.05
#: Share of the latency between kernels above which faster arithmetic cannot show.
DISPATCH_BOUND = 0.25


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Where the time of one batch goes, in ms.

    Attributes:
        latency: measured without a profiler, whose own cost in every kernel is taken off in proportion.
    """

    latency: float
    kernels: Sequence[OpProfile]

    @property
    def products(self) -> float:
        """In kernels that multiply by weights."""
        return self.time_of([kernel for kernel in self.kernels if kernel.macs])

    @property
    def conversions(self) -> float:
        """In kernels that only convert."""
        return self.time_of([kernel for kernel in self.kernels if _converts(kernel)])

    @property
    def others(self) -> float:
        """In all other kernels: activation functions, additions, pooling."""
        return self.time_of([kernel for kernel in self.kernels if not kernel.macs and not _converts(kernel)])

    @property
    def between(self) -> float:
        """Not in any kernel."""
        return self.latency - self.time_of(self.kernels)

    def time_of(self, kernels: Sequence[OpProfile]) -> float:
        """In some of the kernels."""
        profiled = sum(kernel.ms for kernel in self.kernels)
        return sum(kernel.ms for kernel in kernels) * min(1.0, self.latency / profiled if profiled else 1.0)


def why_less_accurate(tables: Sequence[Table], *, most: int = 3) -> list[str]:
    """A sentence on what costs most of the accuracy, and what mends it; none where that was not looked for."""
    (found,) = [table.rows[:most] for table in tables if table.name == "noise"] or [()]
    if not found:
        return []
    worst = (f"{what} (alone {sqnr_db:.1f} dB: {why})" for what, sqnr_db, why, _ in found)
    knobs = "; or ".join(dict.fromkeys(str(knob) for *_, knob in found))
    drawn = "; layers/channels.png shows their channels" if any(table.name == "channels" for table in tables) else ""
    return [f"of all that is rounded these cost most on calibration images: {', '.join(worst)}; try {knobs}{drawn}"]


def why_not_faster(own: Profile, fp32: Profile, scheme: Scheme, *, threads: int, alone_ms: float) -> list[str]:
    """Sentences, each on a cause that the profiles show; none where they show none.

    Args:
        own, fp32: of the artifact and of the same engine's fp32.
        threads: of the engine.
        alone_ms: latency of the artifact on one thread.
    """
    if scheme.arithmetic != "integer":
        return [scheme.why] if scheme.why else []
    causes = []
    layers = [kernel for kernel in own.kernels if kernel.macs]
    if floats := [kernel for kernel in layers if not kernel.integer]:
        names = ", ".join(kernel.name for kernel in floats[:3]) + (" and others" if len(floats) > 3 else "")
        share = f", {own.time_of(floats) / own.latency:.0%} of the time" if own.products else ""
        causes.append(f"no integer kernel for {len(floats)} of {len(layers)} layers{share}: {names}")
    if own.products and fp32.products:
        if own.products > 0.95 * fp32.products:
            causes.append(
                f"products by weights take {own.products:.3g} ms on integers and {fp32.products:.3g} ms in float32"
            )
        if own.conversions - fp32.conversions > WORTH_TELLING * own.latency:
            causes.append(
                f"conversions between codes and floats take {own.conversions:.3g} ms, "
                f"{own.conversions / own.latency:.0%} of the time (fp32: {fp32.conversions:.3g} ms)"
            )
        if own.others - fp32.others > WORTH_TELLING * own.latency:
            causes.append(
                f"operations without weights take {own.others:.3g} ms on codes and {fp32.others:.3g} ms in float32"
            )
        if own.between > DISPATCH_BOUND * own.latency:
            typical = 1e3 * statistics.median(own.time_of([kernel]) for kernel in own.kernels)
            causes.append(
                f"{own.between / own.latency:.0%} of the latency lies between its {len(own.kernels)} kernels, of which "
                f"half take less than {typical:.0f} us: they are too small for faster arithmetic to show"
            )
    if threads > 1 and alone_ms < 1.05 * own.latency:
        causes.append(f"{threads} threads are no faster than one ({own.latency:.3g} ms, {alone_ms:.3g} ms)")
    return causes


def _converts(kernel: OpProfile) -> bool:
    return not kernel.macs and any(part in kernel.op.lower() for part in CONVERSIONS)
