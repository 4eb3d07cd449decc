"""Whether a cell keeps what is required, and which one is deployed."""

import dataclasses

import pytest

from bitsweep.config.requirement import Requirements, common
from bitsweep.errors import ConfigError
from bitsweep.report.advice import recommendations, unmet
from bitsweep.report.choice import choose, finalists, races_that_count
from bitsweep.report.content import SweepReport
from bitsweep.report.row import Race, Row
from bitsweep.report.twins import twins
from bitsweep.report.verdict import verdict_of
from bitsweep.results import RaceTime
from bitsweep.stats import paired_difference_interval
from tests.report.test_report import measured, report

__all__ = ["report"]


def judged(precision: str, *, lost: int, n: int, ms: float, mb: float, backend: str = "onnxruntime") -> Row:
    """A cell that lost so many of the n validation images, all of which its baseline had right."""
    row = measured("resnet18", precision, 0.97, ms, mb)
    figures = {
        "validation_images": n, "validation_top1": 1 - lost / n, "validation_drop_pp": 100 * lost / n,
        "validation_flips": lost, "test_images": 449, "latency_p50_ms_low": 0.95 * ms, "latency_p50_ms_high": 1.05 * ms,
    }  # fmt: skip
    return dataclasses.replace(row, cell=row.cell | {"backend": backend}, metrics=row.metrics | figures)


@pytest.mark.parametrize(
    ("limits", "state", "text"),
    [
        ({"size_mb": 11}, "met", "meets"),
        ({"size_mb": 10.5}, "missed", "misses size_mb by 0.5"),
        ({"p50_ms": 1.06}, "met", "meets"),
        ({"p50_ms": 1.01}, "unknown", "cannot be told: p50_ms [0.95, 1.05]"),
        ({"p50_ms": 0.9}, "missed", "misses p50_ms by 0.1"),
        ({"speedup": 1.9}, "met", "meets"),
        ({"speedup": 2.0}, "unknown", "cannot be told: speedup [1.90, 2.10]"),
        ({"speedup": 2.5, "size_mb": 5}, "missed", "misses speedup by 0.50, size_mb by 6"),
        ({"rss_mb": 40}, "met", "meets"),
        ({"top1": 0.98}, "met", "meets"),
        ({"top1": 0.995}, "missed", "misses top1 by 0.0050"),
        ({"top1": 0.991}, "unknown", "cannot be told: top1 [0.9879, 0.9918]"),
    ],
)
def test_a_limit_is_judged_by_the_interval(limits: dict[str, float], state: str, text: str) -> None:
    verdict = verdict_of(judged("int8", lost=100, n=10_000, ms=1.0, mb=11.0), Requirements(**limits))
    assert (verdict.state, str(verdict)) == (state, text)


def test_no_time_of_an_emulator_keeps_a_limit(report: SweepReport) -> None:
    row = dataclasses.replace(judged("int8", lost=0, n=10_000, ms=1.0, mb=11.0), flags=("emulated",))
    assert str(verdict_of(row, Requirements(p50_ms=5))) == "cannot be told: p50_ms emulated"
    assert verdict_of(row, Requirements(drop_pp=1)).state == "met"
    text = " ".join(recommendations(dataclasses.replace(report, rows=[row])))
    assert "which cell is the fastest on a real processor is not known" in text


def test_a_drop_is_judged_by_the_paired_interval() -> None:
    row = judged("int8", lost=40, n=10_000, ms=1, mb=1)
    low, high = (100 * end for end in paired_difference_interval(40, 0, 10_000, row.confidence))
    states = [
        verdict_of(row, Requirements(drop_pp=limit)).state for limit in (high + 0.01, high - 0.01, 0.4, low - 0.01)
    ]
    assert states == ["met", "unknown", "unknown", "missed"]
    few = judged("int8", lost=0, n=100, ms=1, mb=1)
    assert verdict_of(few, Requirements(drop_pp=1)).state == "unknown"
    uncompressed = dataclasses.replace(few, cell=few.cell | {"method": "none", "precision": "fp32"})
    assert verdict_of(uncompressed, Requirements(drop_pp=0)).state == "met"
    diverging = dataclasses.replace(uncompressed, flags=("diverges",))
    assert str(verdict_of(diverging, Requirements(drop_pp=0))) == "cannot be told: drop_pp diverges"


def test_requirements_are_those_of_all_cells() -> None:
    assert common([Requirements(drop_pp=1), Requirements(drop_pp=1.0)]) == Requirements(drop_pp=1)
    with pytest.raises(ConfigError, match=r"require.size_mb=null,4.0: a sweep has one set"):
        common([Requirements(drop_pp=1), Requirements(drop_pp=1, size_mb=4)])


def test_the_choice_is_made_on_validation_images_and_told_on_test_images(report: SweepReport) -> None:
    good, lucky = judged("int8", lost=100, n=10_000, ms=2, mb=11), judged("int4", lost=400, n=10_000, ms=1, mb=6)
    lucky = dataclasses.replace(lucky, metrics=lucky.metrics | {"top1": 0.999})
    text, *_ = recommendations(dataclasses.replace(report, rows=[good, lucky]))
    assert text.startswith("digits: deploy resnet18 ptq int8 onnxruntime, the fastest of the 1") or "the only" in text
    assert "It reaches 97.00 [96.00, 97.50] %" in text
    assert "Cells were judged on 10000 validation images" in text


def test_what_nothing_keeps_says_what_is_nearest_and_what_would_have_to_give(report: SweepReport) -> None:
    rows = [judged("int8", lost=10, n=10_000, ms=2, mb=11), judged("int4", lost=400, n=10_000, ms=1, mb=6)]
    wanted = dataclasses.replace(report, rows=rows, require=Requirements(drop_pp=1, size_mb=5))
    text = recommendations(wanted)[0]
    assert unmet(wanted)
    assert text.startswith("digits: no cell is known to keep require.drop_pp=1 require.size_mb=5.")
    assert "Nearest to size_mb=5 is resnet18 ptq int4 onnxruntime with 6, which misses it." in text
    assert "All limits would be kept with size_mb=11 instead of 5 for resnet18 ptq int8 onnxruntime." in text
    met, *_ = recommendations(kept := dataclasses.replace(wanted, require=Requirements(drop_pp=1, size_mb=11)))
    assert not unmet(kept)
    assert met.startswith("digits: deploy resnet18 ptq int8 onnxruntime, the only cell that keeps require.drop_pp=1 ")
    failed = dataclasses.replace(rows[0], status="failed", metrics={})
    assert unmet(dataclasses.replace(kept, rows=[failed]))
    assert not unmet(dataclasses.replace(kept, rows=[failed], require=Requirements()))


def test_few_images_say_what_they_cannot_tell(report: SweepReport) -> None:
    few = dataclasses.replace(report, rows=[judged("int8", lost=0, n=135, ms=1, mb=1)], require=Requirements(drop_pp=1))
    (text,) = recommendations(few)
    assert unmet(few)
    assert "On 135 validation images a drop of up to 2.02 points may go unseen" in text
    assert "to rule out one of more than 1 would take about 570 images" in text
    assert "Uncompressed it is kept: deploy resnet18 none fp32 onnxruntime" in text


def test_twins_take_part_by_the_time_that_they_took_beside_others() -> None:
    rows = [judged("int8", lost=0, n=1000, ms=ms, mb=4) for ms in (1.0, 1.2, 9.0)]
    rows = [dataclasses.replace(row, cell=row.cell | {"method.percentile": str(i)}) for i, row in enumerate(rows)]
    (twin,) = twins(rows)
    assert twin.cell == {k: v for k, v in rows[0].cell.items() if "." not in k} | {
        "method": "none",
        "precision": "fp32",
    }
    assert (twin.metrics["latency_p50_ms"], twin.metrics["size_mb"]) == (2.4, 16)
    assert twin.metrics["top1"] == pytest.approx(0.97 + 0.002)
    assert twins([*rows, dataclasses.replace(twin, in_grid=True)]) == []


@pytest.mark.parametrize(("verdict", "chosen"), [("slower", "fp32"), ("not distinguishable", "int8")])
def test_what_was_timed_beside_fp32_is_compared_with_that(verdict: str, chosen: str) -> None:
    """Not with a time of another minute, by which int8 is faster here."""
    row = judged("int8", lost=0, n=1000, ms=1.0, mb=4)
    row = dataclasses.replace(row, verdict=verdict, metrics=row.metrics | {"speedup": 0.9})
    fp32 = dataclasses.replace(
        row,
        cell=row.cell | {"method": "none", "precision": "fp32"},
        metrics=row.metrics | {"latency_p50_ms": 5.0},
        verdict="",
    )
    found = choose([row, fp32], Requirements()).row
    assert found and found.cell["precision"] == chosen
    smaller = choose([row, fp32], Requirements(size_mb=3, objective="size"))
    assert smaller.row is None
    seems_slower = dataclasses.replace(row, metrics=row.metrics | {"speedup": 0.74})
    beside = dataclasses.replace(fp32, metrics=fp32.metrics | {"latency_p50_ms": 0.8})
    found = choose([seems_slower, beside], Requirements()).row
    assert found and found.cell["precision"] == "fp32"
    limited = dataclasses.replace(fp32, metrics=fp32.metrics | {"size_mb": 16.0})
    found = choose([row, limited], Requirements(size_mb=4)).row
    assert found and found.cell["precision"] == "int8"


def test_the_final_race_decides(report: SweepReport) -> None:
    rows = [
        judged("int8", lost=0, n=5000, ms=ms, mb=4, backend=name) for ms, name in ((1.0, "a"), (1.1, "b"), (2.0, "c"))
    ]
    (heat,) = finalists(rows, Requirements())
    assert [row.engine for row in heat] == ["a", "b", "c"]
    assert finalists(rows[:1], Requirements()) == []
    winner = RaceTime(p50_ms=1.3, low_ms=1.2, high_ms=1.4, times=1, times_low=1, times_high=1)
    loser = RaceTime(p50_ms=1.6, low_ms=1.5, high_ms=1.7, times=1.25, times_low=1.2, times_high=1.3)
    raced = [dataclasses.replace(rows[0], final=loser), dataclasses.replace(rows[1], final=winner), rows[2]]
    race = Race(cells=(rows[1].cell, rows[0].cell), times=(winner, loser))
    text, ranking, caution = recommendations(dataclasses.replace(report, rows=raced, races=(race,)))
    assert "deploy resnet18 ptq int8 b" in text and "the first of those that raced in the end" in text
    assert "b in int8 (1.30 ms), a in int8 (1.60 ms, 1.25 [1.20, 1.30] times as long)" in ranking
    assert "Then those that were not in it, by times of their own: c in int8 (2.00 ms)." in ranking
    assert "differences of a tenth mean little" in caution
    assert verdict_of(raced[1], Requirements(p50_ms=1.39)).state == "unknown"


def test_a_race_counts_only_where_the_fastest_that_keeps_the_limits_was_in_it(report: SweepReport) -> None:
    fast = judged("int3", lost=75, n=5000, ms=1.0, mb=2, backend="a")
    sound = judged("int8", lost=0, n=5000, ms=1.1, mb=4, backend="a")
    other = judged("int8", lost=0, n=5000, ms=2.0, mb=4, backend="b")
    time = RaceTime(p50_ms=1, low_ms=1, high_ms=1, times=1, times_low=1, times_high=1)
    race = Race(cells=(fast.cell, other.cell), times=(time, time))
    bare = dataclasses.replace(report, rows=[fast, sound, other])
    for limits, counts in ({"drop_pp": 3}, True), ({"drop_pp": 1}, False), ({"p50_ms": 0.1}, True):
        found = dataclasses.replace(bare, require=Requirements(**limits))
        assert races_that_count(found, [race]) == ([race] if counts else [])
