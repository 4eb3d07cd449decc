"""What to deploy, in words, and why that can be believed."""

import math
from collections.abc import Sequence

from bitsweep.config.requirement import Requirements
from bitsweep.measuring.latency import CROWDED, EMULATED
from bitsweep.metrics import METRICS
from bitsweep.report.choice import TOLERATED_LOSS, Choice, by_dataset, choose, p50_ms
from bitsweep.report.content import SweepReport, interval, ratio, shown
from bitsweep.report.ranking import engines
from bitsweep.report.row import Row
from bitsweep.report.shortfall import shortfall, unseen
from bitsweep.report.twins import own_ms, twin_of, unequal
from bitsweep.report.verdict import accuracy, judged_on, verdict_of
from bitsweep.results import AT_CHANCE
from bitsweep.text import some

#: Of how many files it is told in full that the machine was not equally fast beside them.
_MOST_UNEQUAL = 3
#: Objective -> how the best by it is called.
_BEST = {"latency": "fastest", "throughput": "fastest", "size": "smallest", "accuracy": "most accurate"}


def recommendations(report: SweepReport) -> list[str]:
    """What to deploy on each data set and why that can be believed, one paragraph each."""
    paragraphs = []
    for dataset, rows in by_dataset(report).items():
        paragraphs.append(f"{dataset}: {_recommend(report, rows)}")
        paragraphs += [*engines(dataset, rows, report), *_unequal(report, rows)]
    if report.no_race:
        paragraphs.append(f"A final race could not be held: {report.no_race}")
    return paragraphs


def unmet(report: SweepReport) -> bool:
    """Whether something is required, and no cell is known to keep it."""
    return bool(report.require.limits) and not any(
        row.in_grid
        for rows in by_dataset(report).values()
        for row in choose(rows, report.require, report.races).keeping
    )


def words_of(require: Requirements) -> str:
    """The requirements as they are written on a command line."""
    return " ".join(f"require.{name}={value:g}" for name, value in require.limits.items())


def _recommend(report: SweepReport, rows: list[Row]) -> str:
    require = report.require
    choice = choose(rows, require, report.races)
    if not rows:
        return "nothing can be recommended, because no cell was measured."
    if not choice.believable and any(AT_CHANCE in row.flags for row in rows):
        return (
            "nothing can be recommended, because no fp32 baseline is known to do better than the most frequent class "
            "as the answer to everything: train longer, or with another train.lr."
        )
    if not choice.believable:
        return "nothing can be recommended, because no cell has an accuracy that can be believed."
    sentences = []
    if require.limits and not any(row.in_grid for row in choice.keeping):
        cells = [row for row in choice.believable if row.in_grid or choice.row is None]
        sentences = [f"no cell is known to keep {words_of(require)}.", *shortfall(report, cells)]
    elif choice.row is None:
        return "nothing can be recommended, because no cell that keeps the accuracy was timed."
    if choice.row:
        chosen = _chosen(report, choice, choice.row)
        sentences += [f"Uncompressed it is kept: {chosen[0]}" if sentences else chosen[0], *chosen[1:]]
        sentences += [*_faster(report, choice, choice.row), *_smallest(report, choice)]
    return " ".join([*sentences, *_chosen_on(choice.believable)])


def _chosen(report: SweepReport, choice: Choice, row: Row) -> list[str]:
    require = report.require
    place = f"deploy {report.name_of(row)}, {_place(choice, row, require)}."
    mb = f"{shown(row, 'size_mb')} MB"
    ms = f"{shown(row, 'latency_p50_ms')} ms"
    if row.final:
        ms = f"{METRICS['latency_p50_ms'].shown(row.final.p50_ms)} ms in the final race"
    figures = f"It reaches {interval(row, 'top1')} %, with {mb if p50_ms(row) is None else f'{ms} and {mb}'}."
    if not row.in_grid:
        beside = "" if row.final else " what it took beside cells that were timed against it"
        figures = (
            f"It is not in the grid: {shown(row, 'top1')} % is its baseline's, {ms}{beside}, at {mb}; method=none "
            "precision=fp32 measures it."
        )
        beaten = [each for each in choice.slower if twin_of(each.cell) == row.cell]
        if beaten:
            nearest = max(beaten, key=lambda each: each.metrics["speedup"])
            figures += f" Compressed cells are slower there, the best is {report.name_of(nearest)} ({ratio(nearest)})."
    keeps = [f"It keeps {', '.join(_kept(row, require))}."] if require.limits else []
    return [place, figures, *keeps, *_evidence(row, choice), *unseen(row, require)]


def _kept(row: Row, require: Requirements) -> list[str]:
    return [
        f"{each.name} with {each.text} of {'at most' if each.limit.most else 'at least'} {each.bound:g}"
        for each in verdict_of(row, require).judged
    ]


def _faster(report: SweepReport, choice: Choice, chosen: Row) -> list[str]:
    """The fastest cell that has less time than the choice, and is left out for its accuracy alone."""
    ms = p50_ms(chosen)
    if choice.best is None or ms is None or _BEST[report.require.objective] != "fastest":
        return []
    left_out = [row for row in choice.believable if row.in_grid and accuracy(row) < choice.best - TOLERATED_LOSS]
    fastest = min(left_out, key=lambda row: p50_ms(row) or math.inf, default=chosen)
    if (p50_ms(fastest) or math.inf) >= ms:
        return []
    on = "" if judged_on(fastest)[0] == "test" else " on validation images"
    below = 100 * (choice.best - accuracy(fastest))
    return [
        f"{report.name_of(fastest)} takes {shown(fastest, 'latency_p50_ms')} ms, and is left out: "
        f"it is {below:.2f} points below the best{on}."
    ]


def _smallest(report: SweepReport, choice: Choice) -> list[str]:
    """What is smaller than the choice, where size does not decide."""
    smallest = min(choice.keeping, key=lambda row: row.metrics["size_mb"])
    if smallest is choice.row or smallest.metrics["size_mb"] >= (choice.row or smallest).metrics["size_mb"]:
        return []
    return [
        f"Where size matters more, {report.name_of(smallest)} has {shown(smallest, 'size_mb')} MB at "
        f"{interval(smallest, 'top1')} %."
    ]


def _place(choice: Choice, row: Row, require: Requirements) -> str:
    """Among how many a choice is the best, and of those that are faster why they are none."""
    rivals = [each for each in choice.keeping if each.in_grid or each is row]
    keeping = [f"that keep {words_of(require)}"] if require.limits else []
    if choice.best is not None:
        on = "" if judged_on(row)[0] == "test" else " on validation images"
        keeping.append(f"within {100 * TOLERATED_LOSS:g} point of the best top-1 ({_percent(choice.best)}{on})")
    if len(rivals) == 1:
        timed = "timed " if _BEST[require.objective] == "fastest" and not require.limits else ""
        return f"the only {timed}cell {', '.join(keeping).replace('that keep ', 'that keeps ')}"
    doubt = "perhaps " if _BEST[require.objective] == "fastest" and any(map(_crowded, rivals)) else ""
    place = f"{doubt}the {_BEST[require.objective]} of the {len(rivals)} cells {', '.join(keeping)}"
    ms = p50_ms(row)
    if ms is None or _BEST[require.objective] != "fastest":
        return place
    if row.final and any(each.final for each in rivals if each is not row):
        return f"{place}, and the first of those that raced in the end"
    faster = any((p50_ms(each) or ms) < ms for each in rivals)
    return f"{place} that is not slower than its own fp32" if faster else place


def _unequal(report: SweepReport, rows: Sequence[Row]) -> list[str]:
    """A paragraph for each network whose fp32 file took unequal times beside its cells; for the first few of many."""
    found = sorted(unequal(rows), key=lambda pair: own_ms(pair[0]) / own_ms(pair[1]))
    paragraphs = []
    for fastest, slowest in found[:_MOST_UNEQUAL]:
        took, instead = (METRICS["latency_p50_ms"].shown(own_ms(row)) for row in (fastest, slowest))
        paragraphs.append(
            f"The machine was not equally fast for all cells of {_pair(fastest)}: the same fp32 file took {took} ms "
            f"beside {report.name_of(fastest)}, and {instead} ms beside {report.name_of(slowest)}. Do not compare the "
            "speed-ups and times of these two; remeasure=all measures the cells again."
        )
    if more := [_pair(fastest) for fastest, _ in found[_MOST_UNEQUAL:]]:
        paragraphs.append(f"Nor was it for those of {some(more)}, by less.")
    return paragraphs


def _pair(row: Row) -> str:
    return f"{row.cell['model']} on {row.engine}"


def _chosen_on(rows: Sequence[Row]) -> list[str]:
    """On which images cells were judged."""
    (on, count), *_ = sorted({judged_on(row) for row in rows}, reverse=True)
    if on == "validation":
        return [f"Cells were judged on {count} validation images; figures in % are of the test images."]
    return [
        "There are no validation images beside those that methods are calibrated on: cells were judged on the test "
        "images themselves, which flatters the one that is chosen."
    ]


def _evidence(row: Row, choice: Choice) -> list[str]:
    """Sentences on why, or how far, the figures of a row can be believed."""
    metrics, sentences = row.metrics, []
    if row.verdict:
        times, _, ends = ratio(row).partition("x ")
        sentences.append(
            f"Against fp32 on the same engine it is {row.verdict}: {times} times as fast {ends}, in interleaved blocks."
        )
        if row.verdict == "slower" and not any(row is each for each in choice.slower):
            sentences.append("That fp32 does not keep what is required.")
    if "mcnemar_p" in metrics and metrics.get("flips"):
        known = "is significant" if metrics["mcnemar_p"] < 1 - row.confidence else "is not significant"
        gain = " (it gained)" if metrics["top1_drop_pp"] < 0 else ""
        sentences.append(
            f"The drop of {shown(row, 'top1_drop_pp')} points against its baseline{gain} {known} "
            f"(exact McNemar p = {shown(row, 'mcnemar_p')}; flipped images: {shown(row, 'flips')})."
        )
    if "parity_agreement" in metrics:
        agreement = _percent(metrics["parity_agreement"])
        sentences.append(f"The engine agrees with the reference on {agreement} of the test images.")
    if metrics.get("int8_mac_share"):
        sentences.append(f"{100 * metrics['int8_mac_share']:.0f} % of its multiply-accumulates ran on integers.")
    if EMULATED in row.flags:
        return [*sentences, "An emulator ran it: which cell is the fastest on a real processor is not known."]
    if _crowded(row):
        sentences.append(
            "Other processes used the cores while it was timed, so that no time is its own: measure again on a quiet "
            "machine with remeasure=noisy before relying on the latency."
        )
    elif row.final.noisy if row.final else "noisy" in row.flags:
        sentences.append("The machine was noisy: measure again with remeasure=noisy before relying on the latency.")
    return sentences


def _crowded(row: Row) -> bool:
    """Whether others used the cores while a cell was timed, in the final race where it ran in one."""
    return row.final.crowded if row.final else CROWDED in row.flags


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
