"""What a source of noise is said to cost is what it costs."""

from functools import partial

import pytest
import torch
from torch import Tensor

from bitsweep.config.precision import Grid
from bitsweep.graphs.ops import arguments, attribute, is_layer
from bitsweep.quantization import grids
from bitsweep.quantization.analysis.noise import NoiseStudy
from bitsweep.quantization.analysis.watching import study_noise
from bitsweep.quantization.calibration.ranges import minmax_range, minmax_weight_range
from bitsweep.quantization.placement import EVERYWHERE
from bitsweep.quantization.weights import nearest_codes
from tests.quantization import networks

WEIGHTS, ACTIVATIONS = (
    Grid(bits=8, signed=True, symmetric=True, per_channel=True),
    Grid(bits=8, signed=False, symmetric=False),
)


def _study(*, corrected: frozenset[str] = frozenset(), images: Tensor | None = None) -> NoiseStudy:
    graph = networks.mixed()
    parameters = [arguments(node)[1] for node in graph.graph.nodes if is_layer(node)]
    round_weights = partial(nearest_codes, grid=WEIGHTS, choose_range=minmax_weight_range)
    rounded = {str(each.target): round_weights(attribute(graph, each)).values for each in parameters}
    return study_noise(
        graph, networks.images()[0] if images is None else images, weights=rounded,
        corrected=corrected, grid=ACTIVATIONS, choose_range=minmax_range, placement=EVERYWHERE,
    )  # fmt: skip


def test_estimates_agree_with_what_each_source_costs_alone() -> None:
    study = _study()
    sources = study.sources()
    assert {source.what for source in sources} == {"weights", "activation"}
    assert [source.sqnr_db for source in sources] == sorted(source.sqnr_db for source in sources)
    for source in sources:
        assert source.sqnr_db == pytest.approx(study.alone_db(source), abs=6), source.name
    assert study.total_db() < min(source.sqnr_db for source in sources) + 1


def test_every_rounded_thing_is_a_source_once() -> None:
    study = _study()
    names = [source.name for source in study.sources()]
    assert sorted(names) == sorted({*study.weights, *study.tensors.values()})


def test_corrected_biases_take_back_the_shift_of_the_mean() -> None:
    path = "depthwise.weight"
    before = {source.name: source for source in _study().sources()}[path]
    few = networks.images()[0][:4]  # as many as are priced
    after = {source.name: source for source in _study(images=few, corrected=frozenset({path})).sources()}[path]
    assert before.shift_C is not None and after.shift_C is not None
    assert before.shift_C.abs().max() > 1e-4
    torch.testing.assert_close(after.shift_C, torch.zeros_like(after.shift_C), atol=1e-6, rtol=0)


def test_ends_are_those_of_the_channels() -> None:
    study = _study(images=networks.images()[0][:4])
    (images,) = (source for source in study.sources() if source.name == "images")
    assert images.low_C is not None and images.high_C is not None
    torch.testing.assert_close(images.low_C, study.images.amin((0, 2, 3)))
    torch.testing.assert_close(images.high_C, study.images.amax((0, 2, 3)))
    assert grids.sqnr_db(study.logits, study.logits) == float("inf")


def test_one_image_has_a_signal_too() -> None:
    study = _study(images=networks.images()[0][:1])
    assert 0 < study.total_db() < 100 and study.sources()[0].sqnr_db < 100
