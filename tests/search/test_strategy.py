"""What a search asks for next, on grids whose figures are known."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from bitsweep.config.requirement import Requirements
from bitsweep.report import Row
from bitsweep.search.budget import Budget
from bitsweep.search.candidates import Candidate
from bitsweep.search.prospects import Known, Screening, name_of
from bitsweep.search.strategy import Found, search

#: Engine -> milliseconds of a cell with 8 bits.
ENGINES = {"quick": 1.0, "middling": 1.5, "slow": 9.0}
#: Method -> images of 1,000 that it loses at 8 bits.
METHODS = {"good": 2, "fair": 8, "poor": 90}


def candidate(engine: str, method: str, bits: int, images: int) -> Candidate:
    named = {"model": "net", "method": method, "precision": f"int{bits}", "backend": engine, "dataset": "digits"}
    return Candidate(
        choices={**named, "method.calibration_images": str(images)}, network="net", program=f"{method}{bits}-{images}",
        family=f"{method}{bits}", effort=images, engine=engine, formats=f"{bits}", kernels=f"{engine}{bits}",
        bits=bits, uncompressed=False,
    )  # fmt: skip


GRID = [candidate(*point) for point in itertools.product(ENGINES, METHODS, (8, 4), (16, 64))]


@dataclass
class Table:
    """The figures of the grid, and what was asked for, in order."""

    asked: list[str] = field(default_factory=list)

    def screen(self, candidate: Candidate) -> Screening:
        self.asked.append(candidate.program)
        lost = METHODS[candidate.choices["method"]] * (1 if candidate.bits == 8 else 4) + (candidate.effort == 16)
        size_mb = candidate.bits / 8
        return Screening(size_mb=size_mb, images=1000, right=950 - int(lost), lost=int(lost), gained=0)

    def measure(self, candidate: Candidate) -> Row:
        found = self.screen(candidate)
        self.asked[-1] = name_of(candidate)
        ms = ENGINES[candidate.choices["backend"]] * (1 if candidate.bits == 8 else 0.9)
        metrics = {
            "top1": found.accuracy, "validation_images": 1000.0, "validation_top1": found.accuracy,
            "validation_drop_pp": found.lost / 10, "validation_flips": float(found.lost),
            "size_mb": found.size_mb + 0.01, "latency_p50_ms": ms, "latency_p50_ms_low": ms, "latency_p50_ms_high": ms,
            "speedup": 2.0,
        }  # fmt: skip
        return Row(cell=candidate.choices, status="finished", metrics=metrics, command="")

    @property
    def seconds(self) -> float:
        return 60.0 * len(self.asked)


def found(require: Requirements, budget: Budget, table: Table, grid: Sequence[Candidate] = GRID) -> Found:
    return search(grid, table, require=require, budget=budget, confidence=0.95)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("wanted", "best"),
    [
        ({"drop_pp": 2}, "method=good precision=int4 backend=quick"),
        ({"drop_pp": 0.8}, "method=good precision=int8 backend=quick"),
        ({"objective": "size", "drop_pp": 2}, "method=good precision=int4"),
        ({"objective": "accuracy", "p50_ms": 1.2}, "method=good precision=int8 backend=quick"),
    ],
)
def test_the_best_is_found_and_every_other_cell_has_its_reason(wanted: dict[str, float], best: str, seed: int) -> None:
    ended = found(Requirements(**wanted), Budget(cells=36, seed=seed), Table())
    assert any(best in name for name in ended.measured)
    assert len(ended.measured) <= 14
    assert {*ended.measured} | {*ended.reasons} == {name_of(each) for each in GRID}
    assert all(reason.startswith("not run: ") for reason in ended.reasons.values())


def test_what_cannot_keep_a_limit_is_not_measured() -> None:
    ended = found(Requirements(drop_pp=2, size_mb=0.6), Budget(cells=36), Table())
    assert not any("method=poor" in name or "precision=int8" in name for name in ended.measured)
    poor = [reason for name, reason in ended.reasons.items() if "method=poor precision=int4" in name]
    assert any("at best it misses drop_pp by 34" in reason for reason in poor)
    large = [reason for name, reason in ended.reasons.items() if "precision=int8" in name]
    assert any("misses size_mb by 0.4" in reason for reason in large)


def test_the_worse_half_gets_no_more_work() -> None:
    table = Table()
    ended = found(Requirements(objective="accuracy"), Budget(cells=36), table)
    assert "poor8-64" not in table.asked and "good8-64" in table.asked
    reasons = [reason for name, reason in ended.reasons.items() if "method=poor precision=int8" in name]
    assert reasons


def test_slow_engines_are_tried_once() -> None:
    ended = found(Requirements(drop_pp=2), Budget(cells=36), Table())
    assert sum("backend=slow" in name for name in ended.measured) == 1
    assert "no better than" in next(reason for name, reason in ended.reasons.items() if "backend=slow" in name)


def test_a_budget_is_kept() -> None:
    ended = found(Requirements(), Budget(cells=2), Table())
    assert len(ended.measured) == 2
    assert "not run: search.cells=2 was spent on more promising cells" in ended.reasons.values()
    table = Table()
    found(Requirements(), Budget(minutes=4), table)
    assert table.seconds == 240


def test_a_short_search_for_accuracy_measures_what_it_has_made() -> None:
    table = Table()
    ended = found(Requirements(objective="accuracy"), Budget(minutes=4), table)
    assert ended.measured and len(table.asked) <= 5


def test_a_search_that_was_killed_goes_on_with_the_same_cell() -> None:
    whole = Table()
    found(Requirements(drop_pp=2), Budget(cells=9, seed=3), whole)

    class Killed(Table):
        def measure(self, candidate: Candidate) -> Row:
            if sum(" " in asked for asked in self.asked) == 2:
                raise KeyboardInterrupt
            return super().measure(candidate)

    killed, again = Killed(), Table()
    with pytest.raises(KeyboardInterrupt):
        found(Requirements(drop_pp=2), Budget(cells=9, seed=3), killed)
    # The order in which the grid is planned changes: baselines that are there are not planned first.
    found(Requirements(drop_pp=2), Budget(cells=9, seed=3), again, GRID[::-1])
    assert again.asked == whole.asked and whole.asked[: len(killed.asked)] == killed.asked


def test_a_program_that_cannot_be_made_is_none_of_the_choice() -> None:
    class Broken(Table):
        def screen(self, candidate: Candidate) -> Screening:
            screening = super().screen(candidate)
            return replace(screening, failed="cannot be traced") if candidate.family == "good8" else screening

    ended = found(Requirements(drop_pp=0.99), Budget(cells=36), Broken())
    assert not any("method=good precision=int8" in name for name in ended.measured)
    assert "not run: cannot be traced" in ended.reasons.values()


def test_what_is_not_known_of_a_cell_is_foreseen_at_its_best() -> None:
    int8, other, int4 = (candidate("quick", *each, 16) for each in (("good", 8), ("poor", 8), ("good", 4)))
    known = Known(Requirements(), 0.95)
    known.learn_program(int8, Table().screen(int8))
    assert (known.size_mb(int8), known.size_mb(other), known.size_mb(int4)) == (1.0, 1.0, 0)
    # An engine's float kernels tell little of those for integers, and so do cells that it computes mostly in float.
    row = Table().measure(int8)
    known.learn(replace(int8, kernels="floats", bits=32), row)
    assert known.fastest_ms(int8) == known.fastest_ms(int4) == pytest.approx(0.8 * 8 / 32)
    known.learn(replace(int8, kernels="dynamic"), replace(row, flags=("mostly float",)))
    assert known.fastest_ms(int8) == pytest.approx(0.8 * 8 / 32)
    known.learn(int8, row)
    assert known.fastest_ms(int4) == pytest.approx(0.8)


def test_where_codes_are_slower_than_floats_other_formats_may_be_as_fast_as_floats() -> None:
    int8, fp16 = candidate("quick", "good", 8, 16), replace(candidate("quick", "good", 16, 16), kernels="halves")
    known = Known(Requirements(), 0.95)
    row = Table().measure(int8)
    known.learn(int8, replace(row, metrics={**row.metrics, "speedup": 0.5}))
    assert known.fastest_ms(fp16) == pytest.approx(0.8 * 0.5)
    known.learn(int8, row)  # twice as fast as floats
    assert known.fastest_ms(fp16) == pytest.approx(0.8)
