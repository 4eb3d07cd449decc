"""Which precisions a quantizing method can express, and on what it is calibrated."""

from typing import Any

import numpy as np
import pytest

from bitsweep.config.precision import Grid, Precision
from bitsweep.methods.factorize import Factorize
from bitsweep.methods.gpfq import Gpfq
from bitsweep.methods.gptq import Gptq
from bitsweep.methods.ptq import PostTrainingQuantization
from bitsweep.methods.qat import QuantizationAwareTraining
from bitsweep.quantization.quantizing import QuantizingMethod
from bitsweep.results import Split, Splits

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


@pytest.mark.parametrize(("activation_range", "size", "sizes"), [
    ("mse", 32, [32, 8]), ("mse", 224, [8] * 5), ("moving_average", 224, [32, 8]),
])  # fmt: skip
def test_batches_of_large_images_are_small_where_nobody_asks_for_batches(
    activation_range: Any, size: int, sizes: list[int]
) -> None:
    split = Split(images=np.zeros((40, 8, 8, 3), np.uint8), labels=np.zeros(40, np.int64))
    splits = Splits(train=split, val=split, test=split, classes=("any",), mean_C=(0.5,), std_C=(0.5,), fingerprint="")
    method = PostTrainingQuantization(name="ptq", activation_range=activation_range)
    batches = method.calibration_batches(splits, input_shape=(3, size, size), seed=0)
    assert [len(batch) for batch in batches] == sizes


@pytest.mark.parametrize(
    ("bits", "reason"), [(2, None), (4, "method.threshold=hard: an alphabet of 16 values has no 0")]
)
def test_weights_are_sent_to_zero_where_there_is_one(bits: int, reason: str | None) -> None:
    method = Gpfq(name="gpfq", alphabet="lybrand", threshold="hard")
    weights = Grid(bits=bits, signed=True, symmetric=True)
    found = method.unsupported(Precision(name="any", weights=weights, activations="float32"))
    assert found is None if reason is None else found and found.startswith(reason)
