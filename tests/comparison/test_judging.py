"""How often decisions are wrong, and how often regressions are found, on latencies that were recorded.

``recorded.json`` holds block medians of nine measurements each of two programs of lenet on ONNX Runtime, every one in a
process of its own, on two cores that other programs used as well.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bitsweep.comparison.evidence import CellEvidence, Timing
from bitsweep.comparison.judging import Limits, judge

RECORDED = json.loads(Path(__file__).with_name("recorded.json").read_text())
TRIALS = 200
#: Cells of gates: programs that were recorded. Those of int8 differ more from process to process.
GATES = {"one": ("int8",), "four": ("int8", "fp16", "int8", "fp16"), "ten": ("int8",) * 10}


def drawn(program: str, run: int, rng: np.random.Generator, *, slower: float = 1.0) -> CellEvidence:
    """A measurement like a recorded one: its pairs of blocks, drawn again."""
    recorded = RECORDED[program][run]
    chosen = rng.integers(len(recorded["own_ms"]), size=len(recorded["own_ms"]))
    own, fp32 = (np.array(recorded[which])[chosen] for which in ("own_ms", "fp32_ms"))
    timing = Timing(own_ms=tuple(slower * own), fp32_ms=tuple(fp32))
    names = ("latency_p50_ms", "latency_p50_ms_low", "latency_p50_ms_high", "latency_p90_ms")
    return CellEvidence(
        cell={}, status="finished", machine="one", twin_key="fp32", timings={1: timing},
        metrics=dict.fromkeys(names, float(np.median(timing.own_ms))),
    )  # fmt: skip


def gates(programs: Sequence[str], *, slower: float) -> list[list[str]]:
    """Verdicts on the latencies of a few cells, the first of which may be slower, many times."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(TRIALS):
        pairs = []
        for number, program in enumerate(programs):
            before, after = rng.choice(len(RECORDED[program]), 2, replace=False)
            factor = slower if number == 0 else 1.0
            pairs.append((drawn(program, before, rng), drawn(program, after, rng, slower=factor)))
        judged = judge(pairs, Limits(), level=0.05)
        latencies = [each for figures in judged for each in figures if each.metric.startswith("latency")]
        assert len(latencies) == len(programs)  # the ends of an interval are no tests of their own
        found.append([each.verdict for each in latencies])
    return found


@pytest.mark.parametrize("programs", GATES.values(), ids=GATES)
def test_a_program_against_itself_is_seldom_called_worse(programs: Sequence[str]) -> None:
    assert sum("worse" in verdicts for verdicts in gates(programs, slower=1.0)) <= 0.05 * TRIALS


@pytest.mark.parametrize("programs", GATES.values(), ids=GATES)
def test_ten_per_cent_are_nearly_always_found(programs: Sequence[str]) -> None:
    assert sum(verdicts[0] == "worse" for verdicts in gates(programs, slower=1.1)) >= 0.9 * TRIALS


def test_two_points_of_ten_thousand_images_are_always_found() -> None:
    """Also where twice as many flip, and among fifty cells."""
    rng, n = np.random.default_rng(0), 10_000
    for flips in (200, 600):
        lost = (flips + 200) // 2
        pairs = []
        for number in range(50):
            old_N = rng.random(n) < 0.9
            new_N = old_N.copy()
            if number < 25:
                new_N[rng.choice(np.flatnonzero(old_N), lost, replace=False)] = False
                new_N[rng.choice(np.flatnonzero(~old_N), flips - lost, replace=False)] = True
            pairs.append(tuple(accurate(each) for each in (old_N, new_N)))
        verdicts = [figures[0].verdict for figures in judge(pairs, Limits(drop_pp=0.5), level=0.05)]  # type: ignore[arg-type]
        assert verdicts == ["worse"] * 25 + ["same"] * 25


def test_a_verdict_and_the_interval_beside_it_say_the_same() -> None:
    """Also of one figure alone, whose test has one side."""
    n = 1000
    old_N = np.arange(n) < 900
    verdicts = []
    for gained in range(20):
        new_N = old_N.copy()
        new_N[900 : 900 + gained], new_N[:4] = True, False
        for before_N, after_N in ((old_N, new_N), (new_N, old_N)):
            ((judged, *_),) = judge([(accurate(before_N), accurate(after_N))], Limits(), level=0.05)
            assert judged.low is not None
            assert judged.high is not None
            if judged.verdict in ("worse", "better"):
                assert judged.low * judged.high > 0, judged.text
            verdicts.append(judged.verdict)
    assert {*verdicts} == {"worse", "better", "undecided"}


def accurate(correct_N: np.ndarray) -> CellEvidence:
    """A cell that has these images right."""
    return CellEvidence(cell={}, status="finished", correct_N=correct_N, metrics={"top1": float(correct_N.mean())})


@pytest.mark.parametrize("drop_pp", [0.0, 0.5])
def test_a_network_trained_again_is_seldom_called_worse(drop_pp: float) -> None:
    """Another network of the same accuracy: images flip both ways by chance, in four cells."""
    rng, n, alarms = np.random.default_rng(1), 2000, 0
    for _ in range(TRIALS):
        pairs = [tuple(accurate(rng.random(n) < 0.9) for _ in "ab") for _ in range(4)]
        judged = judge(pairs, Limits(drop_pp=drop_pp), level=0.05)  # type: ignore[arg-type]
        alarms += any(figures[0].verdict == "worse" for figures in judged)
    assert alarms <= 0.05 * TRIALS
