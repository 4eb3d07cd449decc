import pkgutil
from pathlib import Path

import pytest


def test_every_stage_of_ours_is_a_function_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import cell_cost

    for stages in (cell_cost.OURS, *cell_cost.LOWERING.values()):
        assert all(callable(pkgutil.resolve_name(place)) for place in stages)
