from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch.export import ExportedProgram

from bitsweep.backends.executorch.backend import ExecuTorch
from bitsweep.config.backend import Backend
from bitsweep.config.precision import Grid, Precision
from bitsweep.errors import DataError

pytest.importorskip("executorch", reason="executorch is not installed; run: pip install 'bitsweep[executorch]'")

Lowered = Callable[[Backend, Precision], tuple[ExportedProgram, Path]]
BACKEND = ExecuTorch(name="executorch", max_batch=1024)
WEIGHTS = Grid(bits=8, signed=True, symmetric=True, per_channel=True)
INT8 = Precision(name="int8", weights=WEIGHTS, activations=Grid(bits=8, signed=False, symmetric=False))


@pytest.mark.slow
def test_only_what_yields_logits_is_computed_in_float(lowered: Lowered, images: np.ndarray) -> None:
    _, artifact = lowered(BACKEND, INT8)
    kernels = [kernel for kernel in BACKEND.profile(artifact, images, threads=1) if kernel.macs]
    assert [kernel.integer for kernel in kernels] == [True, True, True, True, False]
    assert kernels[-1].op == "Fully Connected (NC, F32) GEMM"


@pytest.mark.slow
def test_more_images_than_the_artifact_takes_are_refused(lowered: Lowered, images: np.ndarray) -> None:
    infer = BACKEND.load(lowered(BACKEND, INT8)[1], threads=1)
    many = np.zeros((BACKEND.max_batch + 1, *images.shape[1:]), np.float32)
    assert len(infer(many[1:])) == BACKEND.max_batch
    with pytest.raises(DataError, match=r"1025 given; the artifact takes 1024: set backend\.max_batch"):
        infer(many)
