from bitsweep.config.precision import Grid, Precision
from bitsweep.config.schemes import signed_codes
from bitsweep.runtime.environment import Cpu


def test_signed_codes_keep_the_bits_of_weights() -> None:
    weights = Grid(bits=8, signed=True, symmetric=True, per_channel=True)
    int8 = Precision(name="int8", weights=weights, activations=Grid(bits=8, signed=False, symmetric=False))
    scheme = signed_codes(int8, Cpu(model="any", architecture="x86_64", flags=frozenset({"avx2"})), engine="XNNPACK")
    assert (scheme.weights, scheme.activations) == (weights, Grid(bits=8, signed=True, symmetric=False))
    assert scheme.why == "XNNPACK's kernels read signed activations"
