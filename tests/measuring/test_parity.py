"""Where an engine leaves the reference, on a real engine, whole and with one layer spoilt."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.export import ExportedProgram

from bitsweep.backends.onnxruntime.backend import OnnxRuntime
from bitsweep.config.backend import Backend
from bitsweep.config.configurable import configurable
from bitsweep.config.precision import FLOAT32, Grid, Scheme
from bitsweep.graphs import ops, tracing
from bitsweep.graphs.program import inference_fn
from bitsweep.measuring.parity import divergence, first_fault, tap
from bitsweep.methods.none import NoCompression
from bitsweep.methods.ptq import PostTrainingQuantization
from tests.quantization.networks import SIZE, Mixed, images, noise_splits

INT8 = Scheme(
    weights=Grid(bits=7, signed=True, symmetric=True, per_channel=True),
    activations=Grid(bits=8, signed=False, symmetric=False),
    arithmetic="integer",
)
IMAGES = torch.cat(images()).numpy()


@cache
def program(scheme: Scheme) -> ExportedProgram:
    torch.manual_seed(0)
    method = NoCompression(name="none") if scheme is FLOAT32 else PostTrainingQuantization(name="ptq")
    splits = noise_splits(SIZE)
    return method.compress(Mixed().eval(), splits, input_shape=(3, SIZE, SIZE), scheme=scheme, seed=0).program


@configurable
class Spoilt(OnnxRuntime):
    """An engine that computes the 1 x 1 convolution with weights eight times as large."""

    def lower(self, program: ExportedProgram, folder: Path) -> None:
        graph = program.module(check_guards=False)
        (point,) = (path for path, value in graph.named_buffers() if "point" in path and "scale" in path)
        ops.set_attribute(graph, point, 8 * graph.get_buffer(point))
        super().lower(tracing.export(graph, input_shape=(3, SIZE, SIZE)), folder)


def test_what_is_tapped_is_what_flows() -> None:
    tapped = tap(program(INT8))
    values = inference_fn(tapped.program)(IMAGES)
    assert values.shape == (len(IMAGES), sum(tapped.sizes))
    assert tapped.names[-1] == "logits"
    np.testing.assert_array_equal(values[:, -tapped.sizes[-1] :], inference_fn(program(INT8))(IMAGES))
    first = values[:, : tapped.sizes[0]].reshape(IMAGES.shape)
    assert len(np.unique(first)) <= 256  # the images as codes
    assert np.abs(first - IMAGES).mean() < np.abs(IMAGES).mean()


def test_without_codes_it_is_the_layers_that_are_tapped() -> None:
    tapped = tap(program(FLOAT32))
    assert len(tapped.names) == 7
    assert tapped.sizes == (8 * 64, 8 * 64, 8 * 64, 8 * 64, 12 * 9, 10, 4)


@pytest.mark.slow
def test_a_true_engine_agrees_everywhere() -> None:
    for scheme in (INT8, FLOAT32):
        table = divergence(program(scheme), OnnxRuntime(name="onnxruntime"), IMAGES, threads=1)
        assert first_fault(table, least_sqnr_db=25) == ""
        assert [row[0] for row in table.rows] == list(tap(program(scheme)).names)


@pytest.mark.slow
def test_the_spoilt_layer_is_named() -> None:
    engine: Backend = Spoilt(name="spoilt")
    table = divergence(program(INT8), engine, IMAGES, threads=1)
    errors = {str(name): float(error) for name, error, _ in table.rows}
    names = list(errors)
    fault = first_fault(table, least_sqnr_db=25)
    spoilt = next(name for name in names if name in fault)
    before = names[: names.index(spoilt)]
    assert before and all(errors[name] < 0.01 for name in before)
    assert "logits" not in spoilt and errors[spoilt] > 0.056
