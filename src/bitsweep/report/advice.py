"""What to deploy, in words, and why that can be believed."""

from bitsweep.report.content import Row, SweepReport, interval

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
        paragraphs.append(f"{dataset}: {_recommend(rows)}")
        paragraphs += _engines(dataset, rows)
    return paragraphs


def _engines(dataset: str, rows: list[Row]) -> list[str]:
    """For each model that several engines ran, these from the fastest to the slowest, each with its best cell."""
    told = []
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
                f"{engine} in {row.cell['precision']} ({row.metrics['latency_p50_ms']:#.3g} ms)"
                for engine, row in fastest.items()
            )
            told.append(f"{model} on {dataset}, engines from the fastest: {', '.join(ranked)}.")
    if told:
        told.append(
            "Each engine was timed against its own fp32, one engine after the other: between engines, "
            "differences of a tenth mean little."
        )
    return told


def _is_sound(row: Row) -> bool:
    return "top1" in row.metrics and not DISQUALIFYING & set(row.flags)


def _recommend(rows: list[Row]) -> str:
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
    choice = min(timed, key=lambda row: row.metrics["latency_p50_ms"])
    smallest = min(timed, key=lambda row: row.metrics["size_mb"])
    sentences = [
        f"deploy {choice.name}, the fastest of the {len(timed)} cells within {100 * TOLERATED_LOSS:g} point of the "
        f"best top-1 ({100 * best:.2f} %).",
        f"It reaches {_percent(choice, 'top1')}, with {choice.metrics['latency_p50_ms']:#.3g} ms and "
        f"{choice.metrics['size_mb']:#.3g} MB.",
        *_evidence(choice),
    ]
    if smallest is not choice:
        sentences.append(
            f"Where size matters more, {smallest.name} has {smallest.metrics['size_mb']:#.3g} MB at "
            f"{_percent(smallest, 'top1')}."
        )
    return " ".join(sentences)


def _evidence(row: Row) -> list[str]:
    """Sentences on why, or how far, the figures of a row can be believed."""
    metrics, sentences = row.metrics, []
    if row.verdict:
        sentences.append(
            f"Against fp32 on the same engine it is {row.verdict}: {metrics['speedup']:.2f} times as fast "
            f"[{metrics['speedup_low']:.2f}, {metrics['speedup_high']:.2f}], in interleaved blocks."
        )
    if "mcnemar_p" in metrics and metrics.get("flips"):
        known = "is significant" if metrics["mcnemar_p"] < 0.05 else "is not significant"
        sentences.append(
            f"The change of {-metrics['top1_drop_pp']:+.2f} points against its baseline {known} "
            f"(exact McNemar p = {metrics['mcnemar_p']:.2g}; flipped images: {metrics['flips']:.0f})."
        )
    if "parity_agreement" in metrics:
        sentences.append(
            f"The engine agrees with the reference on {100 * metrics['parity_agreement']:.2f} % of the test images."
        )
    if metrics.get("int8_mac_share"):
        sentences.append(f"{100 * metrics['int8_mac_share']:.0f} % of its multiply-accumulates ran on integers.")
    if "noisy" in row.flags:
        sentences.append("The machine was noisy: repeat the measurement before relying on the latency.")
    return sentences


def _percent(row: Row, metric: str) -> str:
    return f"{interval(metric, '.2f', 100)(row)} %"
