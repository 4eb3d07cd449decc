import json
from pathlib import Path

import pytest

from bitsweep.config.requirement import Requirements


def test_searches_of_the_recorded_grid_find_the_best_in_a_quarter_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import search

    grid = json.loads(search.GRID.read_text())
    assert len(grid["cells"]) >= 200
    for wanted in search.WANTED.values():
        result = search.run(grid, Requirements(**wanted), seed=0)
        assert result.away <= search.NEAR and result.share <= search.SHARE
