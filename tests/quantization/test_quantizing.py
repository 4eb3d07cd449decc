"""Which precisions a quantizing method can express."""

from typing import Any

import pytest

from bitsweep.config.precision import Grid, Precision
from bitsweep.methods.factorize import Factorize
from bitsweep.methods.gptq import Gptq
from bitsweep.methods.ptq import PostTrainingQuantization
from bitsweep.methods.qat import QuantizationAwareTraining
from bitsweep.quantization.quantizing import QuantizingMethod

CODES = Grid(bits=8, signed=True, symmetric=True)
INTEGERS, HALVES, FLOATS = (
    Gptq(name="gptq"),
    (PostTrainingQuantization(name="ptq"), QuantizationAwareTraining(name="qat")),
    Factorize(name="factorize"),
)
METHODS = (INTEGERS, *HALVES, FLOATS)


@pytest.mark.parametrize(
    ("weights", "activations", "able"),
    [
        (CODES, CODES, METHODS),
        (CODES, "float32", METHODS),
        (CODES, "float16", ()),
        ("float16", "float16", (*HALVES, FLOATS)),
        ("float16", "float32", (*HALVES, FLOATS)),
        ("float16", "bfloat16", ()),
        ("float32", "float32", (FLOATS,)),
        ("float32", CODES, ()),
    ],
)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_what_cannot_be_expressed_says_so(
    method: QuantizingMethod, weights: Any, activations: Any, able: tuple[QuantizingMethod, ...]
) -> None:
    reason = method.unsupported(Precision(name="some", weights=weights, activations=activations))
    assert (reason is None) == (method in able)
    assert reason is None or "choose" in reason
