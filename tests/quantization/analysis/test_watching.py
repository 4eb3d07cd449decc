"""A study that takes over what has not changed finds what a study of everything finds."""

import copy

import pytest
import torch
from torch.fx import GraphModule

from bitsweep.config.precision import Grid
from bitsweep.graphs.ops import arguments, attribute, is_layer
from bitsweep.quantization.analysis.noise import NoiseStudy, Source
from bitsweep.quantization.analysis.watching import study_noise
from bitsweep.quantization.calibration.observers import ActivationObserver
from bitsweep.quantization.calibration.ranges import minmax_range, minmax_weight_range
from bitsweep.quantization.placement import EVERYWHERE, Placement
from bitsweep.quantization.rewrites.channel_groups import ScalingGroup, layer_groups
from bitsweep.quantization.rewrites.channel_scaling import scale_channels
from bitsweep.quantization.weights import nearest_codes
from tests.quantization import networks

WEIGHTS = Grid(bits=8, signed=True, symmetric=True, per_channel=True)
ACTIVATIONS = Grid(bits=8, signed=False, symmetric=False)


def _study(
    graph: GraphModule,
    *,
    placement: Placement = EVERYWHERE,
    known: NoiseStudy | None = None,
    changed: frozenset[str] = frozenset(),
) -> NoiseStudy:
    parameters = [arguments(node)[1] for node in graph.graph.nodes if is_layer(node)]
    rounded = {
        str(each.target): nearest_codes(attribute(graph, each), WEIGHTS, minmax_weight_range).values
        for each in parameters
    }
    return study_noise(
        graph, networks.images()[0], weights=rounded, corrected=True, grid=ACTIVATIONS, choose_range=minmax_range,
        placement=placement, known=known, changed=changed,
    )  # fmt: skip


def _scaled(graph: GraphModule) -> tuple[GraphModule, ScalingGroup]:
    """A copy with other factors of the channels of one tensor, and of which."""
    scaled = copy.deepcopy(graph)
    group = layer_groups(graph)[1]
    scale_channels(scaled, group.within(scaled), torch.logspace(-1, 1, group.channels))
    return scaled, group


def _assert_same(one: list[Source], other: list[Source]) -> None:
    assert [each.name for each in one] == [each.name for each in other]
    for mine, theirs in zip(one, other, strict=True):
        assert mine.sqnr_db == pytest.approx(theirs.sqnr_db, abs=1e-2), mine.name


def test_what_scaling_does_not_touch_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = networks.mixed()
    known = _study(graph)
    before = known.sources()
    scaled, group = _scaled(graph)
    seen: list[ActivationObserver] = []
    forward = ActivationObserver.forward
    monkeypatch.setattr(ActivationObserver, "forward", lambda self, x: (seen.append(self), forward(self, x))[1])
    study = _study(scaled, known=known, changed=group.names)
    assert 0 < len(seen) < len(study.tensors) / 2
    meant = _study(scaled)
    assert study.fresh == group.names & {*study.weights, *study.tensors.values()} < meant.fresh
    for target, (scale, zero_point, _) in meant.qparams.items():
        torch.testing.assert_close(study.qparams[target][:2], (scale, zero_point))
    torch.testing.assert_close(study.offsets, meant.offsets)
    assert study.total_db() == pytest.approx(meant.total_db(), abs=0.1)
    _assert_same(study.sources(before), meant.sources())


def test_what_stays_float_is_no_source_any_more() -> None:
    graph = networks.mixed()
    known = _study(graph)
    before = known.sources()
    name = next(source.name for source in before if source.what == "activation")
    placement = Placement(floats=frozenset({name}))
    study, meant = _study(graph, placement=placement, known=known), _study(graph, placement=placement)
    assert not study.fresh and name not in study.tensors.values()
    _assert_same(study.sources(before), meant.sources())


def test_a_source_is_measured_once() -> None:
    study = _study(networks.mixed())
    worst = study.measured(study.sources()[0])
    assert worst.measured and worst.sqnr_db == study.alone_db(worst)
    assert study.measured(worst) is worst
