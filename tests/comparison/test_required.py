"""How often a limit is called missed that an unchanged program sits at, and how often one that is missed is found."""

from dataclasses import replace

import numpy as np
import pytest

from bitsweep.comparison.content import compare
from bitsweep.comparison.evidence import CellEvidence, SweepEvidence
from bitsweep.comparison.judging import Limits
from bitsweep.config.requirement import Requirements
from bitsweep.stats import median_interval
from tests.comparison.test_judging import RECORDED, TRIALS, drawn


def measured(name: str, run: int, rng: np.random.Generator, *, slower: float, is_new: bool) -> CellEvidence:
    """A measurement as recorded; the one that is judged with the interval that it would have."""
    found, ends = drawn("int8", run, rng, slower=slower), {}
    if is_new:
        own = np.array(found.timings[1].own_ms)
        low, high = median_interval([own[i : i + 1] for i in range(len(own))], confidence=0.95, seed=0)
        ends = {"latency_p50_ms_low": low, "latency_p50_ms_high": high}
    cell = {"model": name, "method": "ptq", "precision": "int8", "backend": "onnxruntime", "dataset": "digits"}
    return replace(found, cell=cell, metrics=found.metrics | ends, measurement=f"{rng.random()}")


def missed(cells: int, *, slower: float) -> int:
    """In how many gates a cell is said to miss the latency that the program has on average."""
    rng = np.random.default_rng(0)
    bound = float(np.mean([np.median(run["own_ms"]) for run in RECORDED["int8"]]))
    require, count = Requirements(p50_ms=bound), 0
    for _ in range(TRIALS):
        runs = [rng.choice(len(RECORDED["int8"]), 2, replace=False) for _ in range(cells)]
        old, new = (
            SweepEvidence(
                sweep_id=which,
                command="",
                confidence=0.95,
                cells=tuple(
                    measured(
                        str(number), pair[side], rng, slower=slower if side and not number else 1.0, is_new=side > 0
                    )
                    for number, pair in enumerate(runs)
                ),
            )
            for side, which in enumerate(("old", "new"))
        )
        found = compare(old, new, Limits(), require=require, demanded=frozenset({"p50_ms"}))
        count += any("misses require.p50_ms" in line for _, line in found.regressions)
    return count


@pytest.mark.parametrize("cells", [1, 4])
def test_a_program_at_its_limit_is_seldom_called_over_it(cells: int) -> None:
    assert missed(cells, slower=1.0) <= 0.05 * TRIALS


def test_what_is_clearly_over_its_limit_is_found() -> None:
    assert missed(1, slower=1.1) >= 0.9 * TRIALS
