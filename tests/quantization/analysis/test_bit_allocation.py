"""The choice of bits, against all choices there are."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from bitsweep.config.precision import Grid
from bitsweep.quantization.analysis.bit_allocation import Study, cheapest_steps, last_that
from bitsweep.quantization.analysis.sensitivity import layer_paths
from bitsweep.quantization.calibration.ranges import minmax_weight_range
from bitsweep.quantization.layerwise import parameters_of
from bitsweep.quantization.weights import nearest_codes
from tests.quantization.analysis.test_sensitivity import LABELLED
from tests.quantization.networks import mixed

GRIDS = [Grid(bits=bits, signed=True, symmetric=True) for bits in (8, 4, 2)]
LAYERS = st.lists(
    st.tuples(st.integers(1, 50), st.lists(st.integers(0, 100), min_size=2, max_size=2)), min_size=1, max_size=4
)


@given(LAYERS)
def test_no_choice_of_the_same_size_does_less_harm(layers: list[tuple[int, list[int]]]) -> None:
    sizes = [{grid: grid.bits * weights for grid in GRIDS} for weights, _ in layers]
    harms = [dict(zip(GRIDS, [0.0, *map(float, sorted(harm))], strict=True)) for _, harm in layers]

    def total(table: list[dict[Grid, float]], step: tuple[Grid, ...]) -> float:
        return sum(entry[grid] for entry, grid in zip(table, step, strict=True))

    steps = cheapest_steps(sizes, harms)
    assert steps[0] == (GRIDS[0],) * len(layers)
    assert steps[-1] == (GRIDS[-1],) * len(layers)
    every = [(total(sizes, step), total(harms, step)) for step in itertools.product(GRIDS, repeat=len(layers))]
    for step, following in itertools.pairwise(steps):
        assert sum(one != other for one, other in zip(step, following, strict=True)) == 1
        assert total(sizes, following) < total(sizes, step)
        least = min(harm for size, harm in every if size <= total(sizes, step))
        assert total(harms, step) == least


@given(st.integers(1, 40), st.integers(0, 60))
def test_bisection_finds_the_last(count: int, limit: int) -> None:
    asked = []

    def holds(index: int) -> bool:
        asked.append(index)
        return index <= limit

    assert last_that(holds, count) == min(limit, count - 1)
    assert len(asked) <= 6


def test_a_study_of_a_network() -> None:
    graph = mixed()
    parameters, paths = parameters_of(graph), layer_paths(graph)
    choices = [Grid(bits=bits, signed=True, symmetric=True, per_channel=True) for bits in (8, 3)]
    codes = {
        path: {grid: nearest_codes(parameters[path], grid, minmax_weight_range) for grid in choices}
        for path in paths.values()
    }
    study = Study(
        graph=graph, paths=paths, codes=codes, activations={}, labelled=LABELLED, parameters=parameters
    )  # fmt: skip
    for harm, size in zip(study.harms(), study.sizes(), strict=True):
        assert 0 <= harm[choices[0]] < harm[choices[1]]
        assert size[choices[0]] > size[choices[1]]
    most, fewest = (dict.fromkeys(codes, grid) for grid in choices)
    assert study.megabytes({}) == 4e-6 * sum(parameters[path].numel() for path in codes)
    assert study.megabytes({}) > study.megabytes(most) > study.megabytes(fewest)
    assert study.effect(most).sqnr_db > study.effect(fewest).sqnr_db + 20
