import pytest

from bitsweep.axes import Grid, Precision
from bitsweep.backends.reference import Reference
from bitsweep.environment import Cpu

BACKEND = Reference(name="reference")
PLAIN = Cpu(model="any", architecture="x86_64", flags=frozenset({"avx2"}))


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_integers_are_simulated_to_the_letter(bits: int) -> None:
    codes = Grid(bits=bits, signed=True, symmetric=True)
    precision = Precision(name="any", weights=codes, activations=codes)
    assert BACKEND.unsupported(precision) is None
    scheme = BACKEND.scheme(precision, PLAIN)
    assert (scheme.weights, scheme.activations, scheme.arithmetic, scheme.why) == (codes, codes, "simulated", "")


def test_its_latency_means_nothing() -> None:
    assert not BACKEND.timed
