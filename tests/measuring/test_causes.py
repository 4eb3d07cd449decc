"""Why something is not faster or less accurate, on records made for one cause each."""

import pytest

from bitsweep.config.precision import FLOAT32, Grid, Scheme
from bitsweep.measuring.causes import Profile, why_less_accurate, why_not_faster
from bitsweep.results import OpProfile, Table

INT8 = Scheme(
    weights=Grid(bits=8, signed=True, symmetric=True),
    activations=Grid(bits=8, signed=False, symmetric=False),
    arithmetic="integer",
)
HALF = Scheme(weights="float16", activations="float32", arithmetic="float32", why="this CPU has no float16 arithmetic")
LAYER = OpProfile(name="conv1", op="QLinearConv", macs=100, integer=True, ms=1.0)
ISLAND = OpProfile(name="fc", op="Gemm", macs=100, integer=False, ms=1.0)
QUANTIZE = OpProfile(name="q", op="QuantizeLinear", macs=0, integer=False, ms=1.0)
ADD = OpProfile(name="add", op="Add", macs=0, integer=False, ms=1.0)
FP32 = Profile(latency=2.0, kernels=[OpProfile(name="conv1", op="Conv", macs=100, integer=False, ms=2.0)])


def causes(
    *kernels: OpProfile, latency: float = 2.0, fp32: Profile = FP32, threads: int = 1, alone_ms: float = 4
) -> str:
    own = Profile(latency=latency, kernels=kernels)
    return "; ".join(why_not_faster(own, fp32, INT8, threads=threads, alone_ms=alone_ms))


def test_a_profile_adds_up_to_the_latency() -> None:
    for latency in (2.0, 5.0):  # less than the profiler says, and more
        profile = Profile(latency=latency, kernels=[LAYER, ISLAND, QUANTIZE, ADD])
        parts = (profile.products, profile.conversions, profile.others, profile.between)
        assert sum(parts) == pytest.approx(latency)
        assert parts == pytest.approx((1.0, 0.5, 0.5, 0.0) if latency == 2.0 else (2.0, 1.0, 1.0, 1.0))


def test_each_cause_is_told_where_it_is_and_only_there() -> None:
    assert causes(LAYER, latency=1.0) == ""
    assert causes(LAYER, ISLAND).startswith("no integer kernel for 1 of 2 layers, 50% of the time: fc; products")
    assert causes(LAYER, QUANTIZE) == ("conversions between codes and floats take 1 ms, 50% of the time (fp32: 0 ms)")
    assert causes(LAYER, ADD) == "operations without weights take 1 ms on codes and 0 ms in float32"
    assert causes(LAYER, latency=3.0).startswith("67% of the latency lies between its 1 kernels, of which half take")
    assert causes(LAYER, LAYER) == "products by weights take 2 ms on integers and 2 ms in float32"


def test_threads_that_do_not_help_are_named() -> None:
    assert causes(LAYER, latency=1.0, threads=2, alone_ms=1.0) == "2 threads are no faster than one (1 ms, 1 ms)"
    assert causes(LAYER, latency=1.0, threads=2, alone_ms=1.8) == ""
    assert causes(LAYER, latency=1.0, threads=1, alone_ms=1.0) == ""


def test_an_engine_that_tells_no_times_is_asked_for_float_layers_only() -> None:
    silent = [OpProfile(name=name, op="op", macs=1, integer=name != "c") for name in "abc"]
    assert causes(*silent) == "no integer kernel for 1 of 3 layers: c"


def test_floats_are_no_faster_for_want_of_hardware() -> None:
    assert why_not_faster(FP32, FP32, HALF, threads=1, alone_ms=2) == [HALF.why]
    assert why_not_faster(FP32, FP32, FLOAT32, threads=1, alone_ms=2) == []


def test_lost_accuracy_is_blamed_on_the_three_that_cost_most() -> None:
    rows = tuple(
        (f"the weights of layer{index}", 10.0 + index, "channel 3 spans 9", "method=qat") for index in range(5)
    )
    noise = Table(name="noise", columns=("what is rounded", "alone: SQNR dB", "channels", "try"), rows=rows)
    (finding,) = why_less_accurate((Table(name="bits", columns=("layer",), rows=()), noise))
    assert all(part in finding for part in ("layer0 (alone 10.0 dB: channel 3 spans 9)", "layer2", "; try method=qat"))
    assert "layer3" not in finding and finding.count("method=qat") == 1
    assert why_less_accurate(()) == []
