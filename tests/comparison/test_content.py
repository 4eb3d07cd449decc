"""Sweeps against each other: what counts as worse, what is only said, and the files that tell it."""

import contextlib
import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from bitsweep import cli
from bitsweep.comparison.content import compare
from bitsweep.comparison.evidence import CellEvidence, SweepEvidence, Timing, read_accepted, write_accepted
from bitsweep.comparison.gate import write_junit, write_summary
from bitsweep.comparison.judging import Limits
from bitsweep.comparison.showing import markdown
from bitsweep.config.requirement import Requirements
from bitsweep.errors import UsageError

N = 1000


def cell(precision: str = "int8", measurement: str = "first", **changes: object) -> CellEvidence:
    correct_N = np.arange(N) % 10 > 0
    known = CellEvidence(
        cell={"model": "lenet", "method": "ptq", "precision": precision, "backend": "onnxruntime", "dataset": "digits"},
        status="finished",
        command=f"bitsweep run model=lenet precision={precision}",
        measurement=measurement,
        machine="Some CPU (avx2), 2 threads",
        twin_key="fp32",
        images="digits",
        metrics={"top1": 0.9, "latency_p50_ms": 1.0, "size_mb": 0.1},
        correct_N=correct_N,
        timings={1: timing()},
    )
    return replace(known, **changes)  # type: ignore[arg-type]


def timing(factor: float = 1.0, machine: float = 1.0) -> Timing:
    """Twenty blocks beside those of fp32; both are slowed by the machine."""
    noise = 1 + 0.01 * np.sin(np.arange(20))
    return Timing(own_ms=tuple(machine * factor * noise), fp32_ms=tuple(machine * 2 * noise[::-1]))


def sweep(*cells: CellEvidence, sweep_id: str = "a") -> SweepEvidence:
    return SweepEvidence(sweep_id=sweep_id, command="bitsweep run -m", confidence=0.95, cells=cells)


def compared(old: CellEvidence | None, new: CellEvidence | None) -> tuple[str, list[str]]:
    """What a cell became, and its regressions."""
    sides = [sweep(*filter(None, [side])) for side in (old, new)]
    comparison = compare(sides[0], sides[1], Limits())
    return comparison.cells[0].became, [line for _, line in comparison.regressions]


def wrong(lost: int, gained: int = 0) -> np.ndarray:
    """Which images are right where some were lost and some gained."""
    correct_N = np.arange(N) % 10 > 0
    correct_N[np.flatnonzero(correct_N)[:lost]] = False
    correct_N[np.flatnonzero(np.arange(N) % 10 == 0)[:gained]] = True
    return correct_N


@pytest.mark.parametrize(
    ("changes", "became", "regression"),
    [
        ({}, "same", ""),
        ({"correct_N": wrong(30)}, "worse", "of 1000 images 30 lost, 0 gained"),
        ({"correct_N": wrong(3, 2)}, "undecided", ""),
        ({"correct_N": wrong(0, 30)}, "better", ""),
        ({"correct_N": None}, "worse", "top-1 % cannot be compared: which images the new one has right is not known"),
        ({"images": "others"}, "worse", "top-1 % cannot be compared: other test images (1000 and 1000)"),
        ({"timings": {1: timing(1.1)}}, "worse", "p50 ms"),
        ({"timings": {1: timing(0.9)}}, "better", ""),
        ({"timings": {1: timing(1.0, machine=1.5)}}, "same", ""),
        ({"timings": {1: timing(1.0, machine=1.5)}, "twin_key": "another"}, "worse", "p50 ms"),
        ({"timings": {1: timing(1.1)}, "flags": ("others use the cores",)}, "undecided", ""),
        ({"timings": {1: timing(1.1)}, "machine": "Another CPU (avx2), 2 threads"}, "undecided", ""),
        ({"metrics": {"top1": 0.9, "latency_p50_ms": 1.0, "size_mb": 0.102}}, "worse", "size MB 0.100 -> 0.102: +2.00"),
        ({"metrics": {"top1": 0.9, "latency_p50_ms": 1.0, "size_mb": 0.05}}, "better", ""),
        ({"metrics": {"top1": 0.9, "size_mb": 0.1}}, "worse", "latency_p50_ms is missing, or not a number"),
        (
            {"metrics": {"top1": float("nan"), "latency_p50_ms": 1.0, "size_mb": 0.1}},
            "worse",
            "top1 is missing, or not a number",
        ),
        ({"flags": ("diverges",)}, "worse", "diverges now"),
        ({"status": "failed", "reason": "killed by SIGSEGV"}, "worse", "failed: killed by SIGSEGV"),
        ({"status": "interrupted"}, "worse", "interrupted: it was not run"),
        ({"status": "skipped", "reason": "no openvino"}, "worse", "skipped: no openvino"),
        ({"status": "lowered", "reason": "no GPU"}, "worse", "was measured, and is only lowered now: no GPU"),
    ],
)  # fmt: skip
def test_a_cell_that_both_measured(changes: dict[str, object], became: str, regression: str) -> None:
    found, regressions = compared(cell(), cell(measurement="second", **changes))
    assert found == became
    assert len(regressions) == bool(regression) and all(regression in line for line in regressions)


@pytest.mark.parametrize(
    ("old", "new", "became", "regression"),
    [
        (None, cell(), "new", ""),
        (None, cell(status="failed", reason="out of memory"), "new", "failed: out of memory"),
        (None, cell(flags=("non-finite logits",)), "new", "non-finite logits"),
        (cell(), None, "gone", "is missing; it was finished: bitsweep run model=lenet precision=int8"),
        (cell(status="skipped"), None, "gone", ""),
        (cell(status="skipped"), cell(status="skipped"), "not run", ""),
        (cell(status="failed"), cell(), "better", ""),
        (cell(status="failed"), cell(status="failed", reason="again"), "worse", "failed: again"),
        (cell(), cell(status="reused"), "reused", ""),
    ],
)
def test_a_cell_that_not_both_measured(
    old: CellEvidence | None, new: CellEvidence | None, became: str, regression: str
) -> None:
    found, regressions = compared(old, new)
    assert found == became
    assert len(regressions) == bool(regression) and all(regression in line for line in regressions)


def test_one_measurement_in_both_is_no_evidence() -> None:
    comparison = compare(sweep(cell()), sweep(cell(status="reused")), Limits())
    assert not comparison.cells[0].figures
    assert "one measurement in both, which says nothing of a change" in comparison.cells[0].doubts[0]
    assert comparison.summary == "a -> a: 1 measured once for both"


def test_what_was_measured_once_is_said_once() -> None:
    cells = [cell(precision) for precision in ("fp32", "fp16", "int8", "int4", "int3")]
    comparison = compare(sweep(*cells), sweep(*cells), Limits())
    named = (f"lenet ptq {precision} onnxruntime digits" for precision in ("fp32", "fp16", "int8"))
    assert comparison.reused.startswith(f"{', '.join(named)} and 2 more: one measurement in both")
    assert len(comparison.doubts) == 1 and comparison.reused == ": ".join(comparison.doubts[0])
    assert markdown(comparison).count("says nothing of a change") == 1
    assert compare(sweep(), sweep(), Limits()).reused == ""


def test_cells_are_named_by_the_settings_that_tell_them_apart() -> None:
    alike = {"protocol.blocks": "5", "train.epochs": "2"}
    guarded, bare = ({**cell().cell, **alike, "method.guard": guard} for guard in ("true", "false"))
    old, new = sweep(cell(cell=guarded), cell(cell=bare)), sweep(cell(cell=guarded), cell(cell=bare))
    first, second = compare(old, new, Limits()).cells
    assert first.name == "lenet ptq int8 onnxruntime digits method.guard=true"
    assert second.name == "lenet ptq int8 onnxruntime digits method.guard=false"
    other = sweep(cell(cell={**guarded, "train.epochs": "3"}))
    assert "train.epochs=3" in compare(old, other, Limits()).cells[0].name


def test_limits_are_what_may_be_lost() -> None:
    old, new = cell(), cell(measurement="second", correct_N=wrong(30), timings={1: timing(1.1)})
    sides = sweep(old), sweep(new)
    assert len(compare(*sides, Limits()).regressions) == 2
    assert not compare(*sides, Limits(drop_pp=4, slower_pct=15)).regressions


def test_a_limit_that_begins_to_be_missed_is_a_regression() -> None:
    figures = {"top1": 0.9, "latency_p50_ms": 1.0}
    require = Requirements(size_mb=0.1004)
    for before, after, count in ((0.1, 0.1005, 1), (0.1005, 0.101, 0), (0.1, 0.1003, 0)):
        old, new = (
            cell(measurement=which, metrics={**figures, "size_mb": size})
            for which, size in (("first", before), ("second", after))
        )
        comparison = compare(sweep(old), sweep(new), Limits(), require=require)
        assert [line for _, line in comparison.regressions] == ["misses require.size_mb=0.1004: 0.101"] * count


@pytest.mark.parametrize(
    ("require", "became", "lines", "untold"),
    [
        ({"size_mb": 0.05}, "worse", ["misses require.size_mb=0.05: 0.1"], []),
        ({"size_mb": 0.2}, "reused", [], []),
        ({"rss_mb": 9}, "worse", ["misses require.rss_mb=9: not measured"], []),
        ({"top1": 0.895}, "reused", [], ["require.top1=0.895 cannot be told: 0.9000 [0.8798, 0.9171]"]),
    ],
)
def test_a_demanded_limit_must_be_kept_by_what_missed_it_before_too(
    require: dict[str, float], became: str, lines: list[str], untold: list[str]
) -> None:
    one = cell(metrics={"top1": 0.9, "latency_p50_ms": 1.0, "size_mb": 0.1, "test_images": 1000})
    comparison = compare(sweep(one), sweep(one), Limits(), require=Requirements(**require), demanded=frozenset(require))
    found = comparison.cells[0]
    assert (found.became, [line for _, line in comparison.regressions]) == (became, lines)
    assert [line for line in found.doubts if "require" in line] == untold


def test_an_accepted_sweep_is_read_as_it_was_written(tmp_path: Path) -> None:
    given = sweep(cell(), cell("fp32", correct_N=wrong(7)), cell("fp16", status="failed", correct_N=None, timings={}))
    given = replace(given, require=Requirements(drop_pp=1.0))
    write_accepted(given, tmp_path / "baseline.json")
    found = read_accepted(tmp_path / "baseline.json")
    assert found.require == given.require
    assert [each.cell for each in found.cells] == [each.cell for each in given.cells]
    for one, other in zip(found.cells, given.cells, strict=True):
        assert (one.correct_N is None) == (other.correct_N is None)
        assert one.correct_N is None or np.array_equal(one.correct_N, other.correct_N)
        assert one.measurement == other.measurement and one.metrics == other.metrics
    assert {each.became for each in compare(given, found, Limits()).cells} == {"reused", "worse"}
    assert (tmp_path / "baseline.json").stat().st_size < 10_000
    with pytest.raises(UsageError, match="none of its cells was measured"):
        write_accepted(sweep(cell(status="failed")), tmp_path / "other.json")


def test_a_gate_judges_accepted_sweeps_where_no_store_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    large = "--larger-pct=50"
    write_accepted(replace(sweep(cell()), require=Requirements(size_mb=0.12)), Path("old.json"))
    for name, changes, limits, code, said in (
        ("same", {}, [], 0, "1 the same"),
        ("slow", {"timings": {1: timing(1.1)}}, [], 1, "regression: .*p50 ms"),
        ("large", {}, ["require.size_mb=0.01"], 1, "regression: .*misses require.size_mb=0.01: 0.1"),
        ("larger", {"metrics": cell().metrics | {"size_mb": 0.13}}, [large], 1, "misses require.size_mb=0.12: 0.13"),
        ("anyhow", {"metrics": cell().metrics | {"size_mb": 0.13}}, [large, "require.size_mb=null"], 0, "1 the same"),
        ("edited", {}, [], 1, "latency_p50_ms is missing, or not a number"),
    ):
        write_accepted(sweep(cell(measurement=name, **changes)), Path("new.json"))
        if name == "edited":
            text = Path("new.json").read_text()
            Path("new.json").write_text(re.sub(r'("latency_p50_ms": ?)1\.0', r"\1NaN", text))
        ended = pytest.raises(SystemExit) if code else contextlib.nullcontext()
        with ended as exited:
            cli.main(["gate", "new.json", "--against", "old.json", *limits])
        assert not exited or exited.value.code == code
        assert re.search(said, capsys.readouterr().out)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["new.json", "old.json"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: "{",
        lambda content: "[" * 100_000,
        lambda content: json.dumps([content]),
        lambda content: json.dumps(content | {"format": 99}),
        lambda content: json.dumps(content | {"cells": [{}]}),
        lambda content: json.dumps(content | {"cells": [content["cells"][0] | {"correct_N": [9, "AA=="]}]}),
        lambda content: json.dumps(content | {"cells": [content["cells"][0] | {"more": 1}]}),
        lambda content: json.dumps(content | {"cells": [content["cells"][0] | {"status": "lost"}]}),
    ],
)
def test_a_file_of_something_else_is_refused(spoil: object, tmp_path: Path) -> None:
    write_accepted(sweep(cell()), file := tmp_path / "baseline.json")
    file.write_text(spoil(json.loads(file.read_text())))  # type: ignore[operator]
    with pytest.raises(UsageError, match="not a file of bitsweep accept"):
        read_accepted(file)
    with pytest.raises(UsageError, match="cannot be read"):
        read_accepted(tmp_path)


def test_servers_that_run_tests_are_told(tmp_path: Path) -> None:
    odd = cell(reason="<b>|`$x`", status="failed")
    old = sweep(cell(), cell("fp32"), cell("fp16"))
    new = sweep(odd, cell("fp32", measurement="second"), cell("fp16"))
    comparison = compare(old, new, Limits())
    for strict, failures in ((False, 1), (True, 2)):
        write_junit(comparison, tmp_path / "junit.xml", strict=strict)
        suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
        assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == (
            "3",
            str(failures),
            str(2 - failures),
        )
        assert [len(case) for case in suite] == [1, 0, 1]
    assert suite[0][0].get("message") == "failed: <b>|`$x`"
    write_summary(comparison, tmp_path / "summary.md")
    write_summary(comparison, tmp_path / "summary.md")
    text = (tmp_path / "summary.md").read_text()
    assert text.count("**1 regression**") == 2
    assert r"failed: \<b\>\|\`\$x\`" in text
    rows = [line for line in markdown(comparison).splitlines() if line.startswith("|")]
    assert {len(row.replace(r"\|", "").split("|")) for row in rows} == {8}


@pytest.mark.parametrize(
    ("factor", "twin_key", "became"), [(1.1, "fp32", "undecided"), (1.3, "fp32", "worse"), (1.1, "another", "worse")]
)
def test_a_file_that_was_timed_alone_changes_with_the_machine(factor: float, twin_key: str, became: str) -> None:
    """Beside fp32 itself no other file is timed; if its file is another than before, the change may be its own."""
    sides = [
        cell(measurement=which, twin_key=key, timings={1: Timing(own_ms=timing(by).own_ms)})
        for which, key, by in (("first", "fp32", 1.0), ("second", twin_key, factor))
    ]
    assert compared(*sides)[0] == became
