"""What is known where nothing keeps all that is required, and how far validation images can tell."""

import math
from collections.abc import Sequence

from bitsweep.config.requirement import Requirements
from bitsweep.report.choice import TOLERATED_LOSS
from bitsweep.report.content import SweepReport
from bitsweep.report.row import Row
from bitsweep.report.verdict import Judged, Verdict, discordant, drop_pp, judged_on, verdict_of
from bitsweep.stats import images_to_tell


def shortfall(report: SweepReport, rows: Sequence[Row]) -> list[str]:
    """For each limit what comes nearest to it; what would have to give; and what more images would tell.

    Args:
        rows: with an accuracy that can be believed.
    """
    verdicts = [(row, verdict_of(row, report.require)) for row in rows]
    sentences = []
    for name in report.require.limits:
        judged = [(row, _limit(verdict, name)) for row, verdict in verdicts]
        known = [(row, each) for row, each in judged if each.found and not each.why]
        if not known:
            why = next((each.why for _, each in judged if each.why), "it was not measured")
            sentences.append(f"Of {name} there is no figure that can be believed: {why}.")
        elif not any(each.state == "met" for _, each in known):
            row, nearest = min(known, key=lambda item: item[1].excess)
            how = "misses it" if nearest.state == "missed" else "may be on either side of it"
            sentences.append(
                f"Nearest to {name}={nearest.bound:g} is {report.name_of(row)} with {nearest.text}, which {how}."
            )
    sentences += _what_would_have_to_give(report, verdicts)
    untold = [
        row for row, verdict in verdicts
        if verdict.state == "unknown" and "drop_pp" in {each.name for each in verdict.of("unknown")}
    ]  # fmt: skip
    if untold:
        sentences += unseen(min(untold, key=lambda row: _upper(row)), report.require)
    return sentences


def _upper(row: Row) -> float:
    found = drop_pp(row)
    return found.high if found else float("inf")


def _what_would_have_to_give(report: SweepReport, verdicts: Sequence[tuple[Row, Verdict]]) -> list[str]:
    """The one limit to loosen for each, and to what, so that a cell keeps everything; the least that it takes."""
    offers = []
    for name, bound in report.require.limits.items():
        alone = [(row, _limit(verdict, name)) for row, verdict in verdicts if _keeps_all_but(verdict, name)]
        if alone:
            row, judged = min(alone, key=lambda item: item[1].needed * (1 if item[1].limit.most else -1))
            offers.append(f"{name}={_loosened(judged)} instead of {bound:g} for {report.name_of(row)}")
    if offers:
        what = "All limits would be kept" if len(report.require.limits) > 1 else "It would be kept"
        return [f"{what} with {', or '.join(offers)}."]
    return ["To loosen one limit alone would not be enough for any cell."] if len(report.require.limits) > 1 else []


def _loosened(judged: Judged) -> str:
    """The value that would be met for certain, in three digits that count, rounded to the side that is safe."""
    step = 10.0 ** (math.floor(math.log10(abs(judged.needed) or 1)) - 2)
    steps = judged.needed / step
    return f"{step * (math.ceil(steps) if judged.limit.most else math.floor(steps)):.4g}"


def _keeps_all_but(verdict: Verdict, name: str) -> bool:
    judged = _limit(verdict, name)
    others = all(each.state == "met" for each in verdict.judged if each is not judged)
    return others and judged.state != "met" and judged.found is not None and not judged.why


def _limit(verdict: Verdict, name: str) -> Judged:
    return next(each for each in verdict.judged if each.name == name)


def unseen(row: Row, require: Requirements) -> list[str]:
    """How large a drop the images that a row was judged on could have missed, and how many it would take.

    Nothing where they are enough.
    """
    found, counts = drop_pp(row), discordant(row)
    margin_pp = 100 * TOLERATED_LOSS if require.drop_pp is None else require.drop_pp
    if not found or not counts or row.uncompressed or found.high <= margin_pp:
        return []
    sure = f"{100 * row.confidence:g} %"
    text = (
        f"On {counts[2]} {judged_on(row)[0]} images a drop of up to {found.high:.2f} points may go unseen "
        f"(the {sure} interval reaches from {found.low:+.2f} to {found.high:+.2f})"
    )
    enough = images_to_tell(*counts, margin=margin_pp / 100, confidence=row.confidence)
    if enough is None:
        return [f"{text}; the drop itself is not below {margin_pp:g}, so that more images would not help."]
    return [f"{text}; to rule out one of more than {margin_pp:g} would take about {_rounded(enough)} images."]


def _rounded(count: int) -> int:
    """A count in two digits that count, rounded up."""
    step = int(10 ** max(0, len(str(count)) - 2))
    return -(-count // step) * step
