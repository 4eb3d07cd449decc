"""Which cells of a grid to run, so that the best is found without running them all.

The cheapest evidence comes first. What a program needs is known when it is made, and its accuracy when its reference
has classified validation images: both hold for every engine with the same scheme. Latency takes an engine; that of one
cell tells those of all others with the same kernels, but for chance. So the next cell is always the one whose figures,
at their best, would be the best of all, and a cell whose figures at their best are none of that is not run at all.

Where programs differ in the work that a method does, such as its calibration images, those with little work are made
first, and only the better half of them goes on with more (Jamieson and Talwalkar 2016, arXiv 1502.07943).
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bitsweep.config.requirement import Requirements
from bitsweep.metrics import METRICS
from bitsweep.report import Row
from bitsweep.report.content import name_among
from bitsweep.search.budget import Budget
from bitsweep.search.candidates import Candidate
from bitsweep.search.prospects import Known, Screening, name_of

#: Bits that are tried first on an engine that is not known yet: every engine has kernels for them.
_FIRST_BITS = 8
#: How often in a row more cells may be proposed of which none is worth a look, before the search ends.
_PATIENCE = 3


class Evidence(Protocol):
    """Where a search gets figures from: the machine, or a record of it."""

    def screen(self, candidate: Candidate) -> Screening:
        """Make the program of a cell, and let its reference classify validation images."""

    def measure(self, candidate: Candidate) -> Row | None:
        """Measure a cell on its engine; None where it has no figures."""

    @property
    def seconds(self) -> float:
        """How long all that was asked for took."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """How a search ended.

    Attributes:
        measured: names of cells in the order in which they were measured.
        reasons: name of a cell -> why it was not measured.
    """

    measured: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)


def search(
    candidates: Sequence[Candidate],
    evidence: Evidence,
    *,
    require: Requirements,
    budget: Budget,
    confidence: float,
    more: Callable[[Known], Sequence[Candidate]] | None = None,
) -> Found:
    """Run cells until none is left that could be the best, or the budget is spent.

    What is asked for next depends on nothing but the figures so far, so that a search which was killed goes on with the
    same cell.

    Args:
        more: proposes cells by what is known, whenever none is left; None where there are no others.
    """
    known, found, order = Known(require, confidence), Found(), random.Random(budget.seed)
    every: list[Candidate] = []
    waiting: dict[str, Candidate] = {}
    fresh, idle = candidates, 0
    while idle < _PATIENCE:
        fresh = sorted(fresh, key=name_of)
        order.shuffle(fresh)
        every += fresh
        waiting |= {name_of(each): each for each in fresh}
        looked_at = len(known.screened), len(found.measured)
        _run(waiting, every, evidence, budget=budget, known=known, found=found)
        if more is None or budget.spent(seconds=evidence.seconds, cells=len(found.measured)):
            break
        idle = idle + 1 if looked_at == (len(known.screened), len(found.measured)) else 0
        fresh = more(known)
    return found


def _run(
    waiting: dict[str, Candidate],
    every: Sequence[Candidate],
    evidence: Evidence,
    *,
    budget: Budget,
    known: Known,
    found: Found,
) -> None:
    """Run or drop cells until none of them is waiting.

    Args:
        every: those too that are waiting no more.
    """
    places = {name_of(candidate): place for place, candidate in enumerate(every)}
    while waiting:
        _, least = known.best()
        name, candidate = min(waiting.items(), key=lambda item: _urgency(item[1], known, least, places[item[0]]))
        if reason := _hopeless(candidate, known, every):
            found.reasons[name] = reason
            del waiting[name]
        elif spent := budget.spent(seconds=evidence.seconds, cells=len(found.measured)):
            found.reasons.update(dict.fromkeys(waiting, f"not run: {spent} was spent on more promising cells"))
            waiting.clear()
        elif candidate.program not in known.screened:
            known.learn_program(candidate, evidence.screen(candidate))
        else:
            row = evidence.measure(candidate)
            found.measured.append(name)
            del waiting[name]
            if row is None:
                known.without_figures.add(name)
            else:
                known.learn(candidate, row)


def _urgency(candidate: Candidate, known: Known, least: float, place: int) -> tuple[float, ...]:
    """What sorts cells: the most promising is the least.

    Where accuracy counts, any program may be the best before it is made. So what is made and better than what was
    measured comes before all others: else the budget could end with programs alone. Those whose reference may not keep
    what is required come last.

    Args:
        least: the objective of the best that was measured.
    """
    screened = known.screened.get(candidate.program)
    doubtful = screened is not None and not known.keeps_accuracy(candidate)
    accuracy = screened.accuracy if screened else 0.0
    record = known.require.objective == "accuracy" and screened is not None and known.best_cost(candidate) < least
    return (
        not record,
        doubtful,
        known.best_cost(candidate),
        screened is None,
        abs(candidate.bits - _FIRST_BITS) if not known.fastest_ms(candidate) else 0,
        candidate.effort,
        -accuracy,
        place,
    )


def _hopeless(candidate: Candidate, known: Known, candidates: Sequence[Candidate]) -> str:
    """Why a cell cannot be the best, or is not worth more work; empty where it may be."""
    screened = known.screened.get(candidate.program)
    if screened and screened.failed:
        return f"not run: {screened.failed}"
    if missed := known.missed(candidate):
        return f"not run: at best it {missed}"
    best, least = known.best()
    if best and known.best_cost(candidate) >= least:
        than = name_among([best, known.foreseen(candidate)], best)
        return f"not run: {_at_best(candidate, known)}, no better than {than}"
    if screened is None and (behind := _behind(candidate, known, candidates)):
        return f"not run: {behind}"
    return ""


def _at_best(candidate: Candidate, known: Known) -> str:
    """The objective of a cell at its best, as text."""
    cost = known.best_cost(candidate)
    match known.require.objective:
        case "size":
            return f"{METRICS['size_mb'].shown(cost)} MB by its bits"
        case "accuracy":
            return f"top-1 {-100 * cost:.2f} % by its reference"
    return f"{METRICS['latency_p50_ms'].shown(cost)} ms at best, by cells with the same kernels or engine"


def _behind(candidate: Candidate, known: Known, candidates: Sequence[Candidate]) -> str:
    """Why a program does not get more work than its family has had; empty where it may, or has had none.

    With the same work, its family was in the worse half of the families with the same formats.
    """
    less = [
        each
        for each in candidates
        if each.family == candidate.family and each.effort < candidate.effort and each.program in known.screened
    ]
    if not less:
        return ""
    before = max(less, key=lambda each: each.effort)
    rivals = {
        each.family: known.screened[each.program].accuracy
        for each in candidates
        if (each.kernels, each.effort) == (before.kernels, before.effort) and each.program in known.screened
    }
    own, better = rivals[before.family], sorted(rivals.values(), reverse=True)
    if own >= better[(len(better) - 1) // 2]:
        return ""
    return (
        f"with less work it was in the worse half of its rivals: {100 * own:.2f} % of the validation images by the "
        "reference"
    )
