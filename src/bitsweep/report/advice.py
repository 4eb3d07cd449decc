"""What to deploy, in words, and why that can be believed."""

from collections.abc import Sequence

from bitsweep.metrics import METRICS
from bitsweep.report.content import Row, SweepReport, interval, ratio, shown

#: Flags of cells whose figures are not those of the model that was meant.
DISQUALIFYING = frozenset({"diverges", "non-finite logits"})
#: Flag of cells whose baseline has learned nothing: their speed and size can be believed.
AT_CHANCE = "at chance"
#: A cell this close to the best accuracy, in shares, is as good.
TOLERATED_LOSS = 0.01


def recommendations(report: SweepReport) -> list[str]:
    """What to deploy on each data set and why that can be believed, one paragraph each."""
    paragraphs = []
    for dataset in dict.fromkeys(row.cell["dataset"] for row in report.rows):
        rows = [row for row in report.measured if row.cell["dataset"] == dataset]
        paragraphs.append(f"{dataset}: {_recommend(report, rows)}")
        paragraphs += _engines(dataset, rows)
    return paragraphs


def _engines(dataset: str, rows: list[Row]) -> list[str]:
    """For each model that several engines ran, these from the fastest to the slowest, each with its best cell."""
    sentences = []
    for model in dict.fromkeys(row.cell["model"] for row in rows):
        sound = [
            row for row in rows if row.cell["model"] == model and _is_sound(row) and "latency_p50_ms" in row.metrics
        ]
        best = max((row.metrics["top1"] for row in sound), default=0.0)
        fastest: dict[str, Row] = {}
        for row in sorted(sound, key=lambda row: row.metrics["latency_p50_ms"]):
            if row.metrics["top1"] >= best - TOLERATED_LOSS:
                fastest.setdefault(row.engine, row)
        if len(fastest) > 1:
            ranked = (
                f"{engine} in {row.cell['precision']} ({shown(row, 'latency_p50_ms')} ms)"
                for engine, row in fastest.items()
            )
            sentences.append(f"{model} on {dataset}, engines from the fastest: {', '.join(ranked)}.")
    if sentences:
        sentences.append(
            "Each engine was timed against its own fp32, one engine after the other: between engines, "
            "differences of a tenth mean little."
        )
    return sentences


def _is_sound(row: Row) -> bool:
    return "top1" in row.metrics and not DISQUALIFYING & set(row.flags)


def _recommend(report: SweepReport, rows: list[Row]) -> str:
    sound = [row for row in rows if _is_sound(row) and AT_CHANCE not in row.flags]
    if not sound and any(AT_CHANCE in row.flags for row in rows):
        return (
            "nothing can be recommended, because no fp32 baseline is known to do better than the most frequent class "
            "as the answer to everything: train longer, or with another train.lr."
        )
    if not sound:
        return "nothing can be recommended, because no cell has an accuracy that can be believed."
    best = max(row.metrics["top1"] for row in sound)
    timed = [row for row in sound if "latency_p50_ms" in row.metrics and row.metrics["top1"] >= best - TOLERATED_LOSS]
    if not timed:
        return "nothing can be recommended, because no cell that keeps the accuracy was timed."
    smallest = min(timed, key=lambda row: row.metrics["size_mb"])
    worthwhile = [row for row in timed if not _loses_to_fp32(row, best)]
    if not worthwhile:
        sentences = [_fp32_instead(report, timed)]
        choice = None
    else:
        choice = min(worthwhile, key=lambda row: row.metrics["latency_p50_ms"])
        sentences = [
            f"deploy {report.name_of(choice)}, {_place(timed, choice)} ({_percent(best)}).",
            f"It reaches {interval(choice, 'top1')} %, with {shown(choice, 'latency_p50_ms')} ms and "
            f"{shown(choice, 'size_mb')} MB.",
            *_evidence(choice),
        ]
    if smallest is not choice:
        sentences.append(
            f"Where size matters more, {report.name_of(smallest)} has {shown(smallest, 'size_mb')} MB at "
            f"{interval(smallest, 'top1')} %."
        )
    return " ".join(sentences)


def _loses_to_fp32(row: Row, best: float) -> bool:
    """Whether the same engine runs the uncompressed network faster, and that is accurate enough."""
    if row.verdict != "slower":
        return False
    return row.metrics["top1"] + row.metrics.get("top1_drop_pp", 0.0) / 100 >= best - TOLERATED_LOSS


def _fp32_instead(report: SweepReport, slower: Sequence[Row]) -> str:
    """What to say where the sweep has nothing that is faster than the uncompressed network on the same engine."""
    fastest = min(slower, key=lambda row: row.metrics["latency_p50_ms"] * row.metrics.get("speedup", 1))
    ms = METRICS["latency_p50_ms"].shown(fastest.metrics["latency_p50_ms"] * fastest.metrics.get("speedup", 1))
    return (
        f"deploy {fastest.cell['model']} uncompressed on {fastest.engine}: each cell that keeps the accuracy is slower "
        f"than fp32 on its own engine. It took about {ms} ms beside {report.name_of(fastest)} "
        f"({ratio(fastest)}); method=none precision=fp32 measures it."
    )


def _place(timed: Sequence[Row], choice: Row) -> str:
    """Among how many a choice is the fastest, and of those that are faster why they are none."""
    faster = sum(row.metrics["latency_p50_ms"] < choice.metrics["latency_p50_ms"] for row in timed)
    within = f"within {100 * TOLERATED_LOSS:g} point of the best top-1"
    if len(timed) == 1:
        return f"the only timed cell {within}"
    but = " that is not slower than its own fp32" if faster else ""
    return f"the fastest of the {len(timed)} cells {within}{but}"


def _evidence(row: Row) -> list[str]:
    """Sentences on why, or how far, the figures of a row can be believed."""
    metrics, sentences = row.metrics, []
    if row.verdict:
        times, _, ends = ratio(row).partition("x ")
        sentences.append(
            f"Against fp32 on the same engine it is {row.verdict}: {times} times as fast {ends}, in interleaved blocks."
        )
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
    if "noisy" in row.flags:
        sentences.append("The machine was noisy: measure again with remeasure=noisy before relying on the latency.")
    return sentences


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
