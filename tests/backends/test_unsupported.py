import pytest

from bitsweep.backends.executorch.backend import ExecuTorch
from bitsweep.backends.litert.backend import LiteRt
from bitsweep.config.backend import Backend
from bitsweep.config.precision import Grid, Precision

WEIGHTS = Grid(bits=8, signed=True, symmetric=True, per_channel=True)
UNSIGNED = Grid(bits=8, signed=False, symmetric=False)
EXECUTORCH, LITERT = ExecuTorch(name="executorch", max_batch=1024), LiteRt(name="litert")
SIXTEEN = Grid(bits=16, signed=True, symmetric=True)


@pytest.mark.parametrize(
    ("backends", "weights", "activations", "hint"),
    [
        ([EXECUTORCH, LITERT], SIXTEEN, SIXTEEN, "reference"),
        ([EXECUTORCH, LITERT], Grid(bits=2, signed=True, symmetric=False, per_channel=True), UNSIGNED, "onnxruntime"),
        ([EXECUTORCH, LITERT], "float16", "float16", "onnxruntime"),
        ([LITERT], WEIGHTS, Grid(bits=4, signed=False, symmetric=False), "onnxruntime"),
    ],
)
def test_what_no_kernel_takes_is_sent_elsewhere(
    backends: list[Backend], weights: Grid | str, activations: Grid | str, hint: str
) -> None:
    for backend in backends:
        reason = backend.unsupported(Precision(name="any", weights=weights, activations=activations))
        assert reason is not None
        assert f"use backend={hint}" in reason
