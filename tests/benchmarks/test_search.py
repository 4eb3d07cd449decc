from pathlib import Path

import pytest

from bitsweep.config.requirement import Requirements


@pytest.mark.parametrize("name", ["digits", "cifar10", "residual"])
def test_searches_of_recorded_grids_find_the_best_in_a_quarter_of_their_time(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import search

    grid = search.recorded(name)
    assert len(grid["cells"]) >= 200
    for wanted in search.wanted(name).values():
        result = search.run(grid, Requirements(**wanted), seed=0)
        assert result.away <= search.NEAR and result.share <= search.SHARE
