from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.export import ExportedProgram

from bitsweep.backends.litert.backend import LiteRt
from bitsweep.config.backend import Backend
from bitsweep.config.precision import Grid, Precision
from bitsweep.errors import CompressionError
from bitsweep.graphs.ops import quantized
from bitsweep.graphs.program import logits_of

Lowered = Callable[[Backend, Precision], tuple[ExportedProgram, Path]]
BACKEND = LiteRt(name="litert")
WEIGHTS = Grid(bits=8, signed=True, symmetric=True, per_channel=True)
INT8 = Precision(name="int8", weights=WEIGHTS, activations=Grid(bits=8, signed=False, symmetric=False))


@pytest.mark.slow
def test_codes_and_scales_are_those_of_the_program(lowered: Lowered) -> None:
    program, artifact = lowered(BACKEND, INT8)
    (codes,) = (value for name, value in program.state_dict.items() if name.endswith("residual.weight_codes"))
    (scales,) = (value for name, value in program.state_dict.items() if name.endswith("residual.weight_scale"))
    interpreter = BACKEND._interpreter(artifact, threads=1)
    (weights,) = (each for each in interpreter.get_tensor_details() if list(each["shape"]) == [32, 3, 3, 32])
    np.testing.assert_array_equal(interpreter.get_tensor(weights["index"]), codes.permute(0, 2, 3, 1))
    np.testing.assert_array_equal(weights["quantization_parameters"]["scales"], scales)


@pytest.mark.slow
def test_everything_between_images_and_head_is_computed_on_codes(lowered: Lowered, images: np.ndarray) -> None:
    _, artifact = lowered(BACKEND, INT8)
    ops = [kernel.op for kernel in BACKEND.profile(artifact, images, threads=1)]
    assert ops[:2] == ["QUANTIZE int8", "TRANSPOSE int8"]
    assert ops[-2:] == ["DEQUANTIZE float32", "FULLY_CONNECTED float32"]
    assert all(op.endswith(" int8") for op in ops[:-2])


class Clamped(torch.nn.Module):
    """Codes of sums of two, clamped to [0, ``most``]; the values of all codes reach from 0 to 1."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = _pair(images, 4 / 255, 0)
        return _pair(torch.nn.functional.hardtanh(images + images, 0.0, self.most), 1 / 255, -128).flatten(1)


def _pair(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    grid = (scale, zero_point, -128, 127, torch.int8)
    return quantized.dequantize_per_tensor(quantized.quantize_per_tensor(x, *grid), *grid)


def _as_meant(network: torch.nn.Module, images: np.ndarray, folder: Path, *, steps: int) -> np.ndarray:
    """The logits of a network as LiteRT runs it, which differ by so many 255ths at most."""
    pytest.importorskip("litert_torch", reason="litert-torch is not installed; run: pip install 'bitsweep[litert]'")
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(network, (torch.ones(2, 3, 32, 32),), dynamic_shapes=dynamic)
    BACKEND.lower(program, folder)
    logits = BACKEND.load(folder, threads=1)(images)
    np.testing.assert_allclose(logits, logits_of(program, [images]), atol=steps / 255 + 1e-6)
    return logits


@pytest.mark.slow
@pytest.mark.parametrize(("most", "is_dropped"), [(1.0, True), (0.5, False)])
def test_a_clamp_is_left_to_the_codes_where_these_end_there(
    most: float, is_dropped: bool, images: np.ndarray, tmp_path: Path
) -> None:
    logits = _as_meant(Clamped(most), images, tmp_path, steps=1)
    assert logits.max() == pytest.approx(most, abs=1 / 255)
    ops = [kernel.op for kernel in BACKEND.profile(tmp_path, images, threads=1)]
    clamps = [] if is_dropped else ["MINIMUM int8"]
    assert ops == ["QUANTIZE int8", "ADD int8", *clamps, "RESHAPE int8", "DEQUANTIZE float32"]


class Function(torch.nn.Module):
    """The codes of a function of codes."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return _pair(self.function(_pair(images, 4 / 255, -10)), 3 / 255, -20).flatten(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "function",
    [F.hardswish, F.gelu, F.relu, F.relu6, F.silu, torch.sigmoid, torch.tanh, partial(F.avg_pool2d, kernel_size=4)],
)
def test_xnnpack_computes_functions_of_codes(
    function: Callable[[torch.Tensor], torch.Tensor], images: np.ndarray, tmp_path: Path
) -> None:
    _as_meant(Function(function), images, tmp_path, steps=3)
    interpreter = BACKEND._interpreter(tmp_path, threads=1)
    executed = [operation["op_name"] for operation in interpreter._get_ops_details()]
    assert executed.count("DELEGATE") == 1, "what is left to LiteRT divides the file"


@pytest.mark.slow
def test_ranges_chosen_at_run_time_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("litert_torch", reason="litert-torch is not installed; run: pip install 'bitsweep[litert]'")

    class Dynamic(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            scale, zero_point = quantized.choose_qparams.tensor(images, -128, 127, 1e-8, torch.int8)
            codes = quantized.quantize_per_tensor.tensor(images, scale, zero_point, -128, 127, torch.int8)
            return quantized.dequantize_per_tensor.tensor(codes, scale, zero_point, -128, 127, torch.int8).flatten(1)

    program = torch.export.export(Dynamic(), (torch.ones(2, 3, 4, 4),))
    with pytest.raises(CompressionError, match="use backend=onnxruntime"):
        BACKEND.lower(program, tmp_path)
