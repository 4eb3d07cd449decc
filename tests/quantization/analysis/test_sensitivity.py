"""What rounding single layers does, against rounding them in a network."""

import copy
import math

import pytest
import torch

from bitsweep.config.precision import Grid
from bitsweep.graphs.ops import attribute, is_layer, set_attribute
from bitsweep.quantization import grids
from bitsweep.quantization.analysis.sensitivity import (
    Effect,
    Rounding,
    effects,
    expected_loss,
    input_qparams,
    layer_paths,
    sensitivity_table,
)
from bitsweep.quantization.calibration.ranges import minmax_range, minmax_weight_range
from bitsweep.quantization.layerwise import parameters_of
from bitsweep.quantization.weights import nearest_codes
from tests.quantization.networks import images, mixed

pytestmark = pytest.mark.slow

GRID = Grid(bits=3, signed=True, symmetric=True, per_channel=True)
UNSIGNED = Grid(bits=8, signed=False, symmetric=False)
LABELLED = [(batch, torch.arange(len(batch)) % 4) for batch in images()]


def restated(changed: set[str]) -> Effect:
    """The effect of rounding the weights of some layers, by doing so in a copy of the network and running all of it."""
    graph = mixed()
    rounded = copy.deepcopy(graph)
    for node in rounded.graph.nodes:
        if is_layer(node) and node.name in changed:
            codes = nearest_codes(attribute(rounded, node.args[1]), GRID, minmax_weight_range)
            set_attribute(rounded, str(node.args[1].target), codes.values)
    with torch.no_grad():
        exact, logits = (torch.cat([each(batch) for batch, _ in LABELLED]).double() for each in (graph, rounded))
    labels = torch.cat([labels for _, labels in LABELLED])
    p = exact.softmax(1)
    N = torch.arange(len(labels))
    others = exact.index_put((N, labels), torch.tensor(-math.inf, dtype=exact.dtype)).argmax(1)
    ahead, noisy = (each[N, labels] - each[N, others] for each in (exact, logits))
    return Effect(
        sqnr_db=grids.sqnr_db(exact, logits),
        divergence=float((p * (p.log() - logits.log_softmax(1))).sum(1).mean()),
        top1=float((logits.argmax(1) == labels).double().mean()),
        expected_loss=expected_loss(ahead, noisy - ahead),
    )


def assert_alike(one: Effect, other: Effect) -> None:
    assert one.sqnr_db == pytest.approx(other.sqnr_db, abs=1e-3)
    assert one.divergence == pytest.approx(other.divergence, rel=1e-3, abs=1e-9)
    assert one.top1 == other.top1
    assert one.expected_loss == pytest.approx(other.expected_loss, abs=1e-4)


def test_the_expected_loss_is_that_of_many_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    margin = torch.randn(40, generator=generator, dtype=torch.float64) + 1
    noise = 0.7 * torch.randn(2000, 40, generator=generator, dtype=torch.float64)
    lost = ((margin > 0) & (margin + noise < 0)).double().mean().item()
    assert expected_loss(margin, noise[:50].flatten()) == pytest.approx(lost, abs=0.01)
    assert expected_loss(margin, torch.zeros(40)) == 0


def test_one_layer_at_a_time_and_all_but_one() -> None:
    graph = mixed()
    parameters, paths = parameters_of(graph), layer_paths(graph)
    rounded = {
        name: Rounding(weight=nearest_codes(parameters[path], GRID, minmax_weight_range).values)
        for name, path in paths.items()
    }
    alone = effects(graph, [{name: rounded[name]} for name in paths], LABELLED, base={}, parameters=parameters)
    others = effects(graph, [{name: None} for name in paths], LABELLED, base=rounded, parameters=parameters)
    (everything,) = effects(graph, [rounded], LABELLED, base={}, parameters=parameters)
    (nothing,) = effects(graph, [{}], LABELLED, base={}, parameters=parameters)
    for name, one, rest in zip(paths, alone, others, strict=True):
        assert_alike(one, restated({name}))
        assert_alike(rest, restated(set(paths) - {name}))
    assert_alike(everything, restated(set(paths)))
    assert nothing.divergence == 0
    assert nothing.sqnr_db == float("inf")


def test_rounding_what_a_layer_reads() -> None:
    graph, batch = mixed(), LABELLED[0][0]
    qparams = input_qparams(graph, UNSIGNED, minmax_range, [batch])
    first, *_ = layer_paths(graph)
    scale, zero_point, grid = qparams[first]
    assert grid == UNSIGNED
    assert float((0 - zero_point) * scale) == pytest.approx(float(batch.min()), abs=float(scale))
    assert float((255 - zero_point) * scale) == pytest.approx(float(batch.max()), abs=float(scale))
    parameters = parameters_of(graph)
    change = {first: Rounding(weight=parameters[layer_paths(graph)[first]], activation=qparams[first])}
    (effect,) = effects(graph, [change], LABELLED[:1], base={}, parameters=parameters)
    with torch.no_grad():
        expected = grids.sqnr_db(graph(batch), graph(grids.fake_quantize(batch, scale, zero_point, grid)))
    assert effect.sqnr_db == pytest.approx(expected, abs=1e-3)


def test_the_table_has_a_line_for_each_layer() -> None:
    graph = mixed()
    parameters = parameters_of(graph)
    codes = {path: nearest_codes(parameters[path], GRID, minmax_weight_range) for path in layer_paths(graph).values()}
    table = sensitivity_table(graph, codes, {}, LABELLED, parameters=parameters)
    assert [row[0] for row in table.rows] == [
        "stem", "grouped", "depthwise", "point", "down", "hidden", "head",
    ]  # fmt: skip
    assert all(len(row) == len(table.columns) for row in table.rows)
