"""Predictions for the test images, before and after compression.

Shape letters: N images, K classes.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bitsweep.measuring.scores import confidences, confusion, decisions, most_confused, reliability
from bitsweep.plots.figures import AFTER, BEFORE, drawable_image, drawable_names, label, panels, save, tiles
from bitsweep.results import Array, Split

#: Classes that a confusion matrix, and bars of classes, have room for.
_MATRIX, _BARS = 20, 30
#: So many numbers can be written into a matrix.
_WRITTEN = 150
_EXAMPLES = 8
#: Letters of a name that have room above one of so many images.
_CAPTION = 13


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """Predictions of two networks for the same images.

    Attributes:
        before_NK, after_NK: finite logits.
        before, after: what the two are called.
    """

    test: Split
    classes: tuple[str, ...]
    before_NK: Array
    after_NK: Array
    before: str
    after: str

    @cached_property
    def labels_N(self) -> Array:
        """The true classes."""
        return np.asarray(self.test.labels)

    @cached_property
    def said_2N(self) -> Array:
        """The classes that both choose."""
        return np.stack([self.before_NK.argmax(1), self.after_NK.argmax(1)])

    @cached_property
    def confidences_2N(self) -> Array:
        """The probabilities that both give to these."""
        return np.stack([confidences(self.before_NK), confidences(self.after_NK)])

    @cached_property
    def confusions_2KK(self) -> Array:
        """Confusion matrices of both."""
        return np.stack([confusion(said_N, self.labels_N, len(self.classes)) for said_N in self.said_2N])


def draw_confusion(verdicts: Verdicts, path: Path, *, name: str) -> None:
    """Draw the confusion matrices of both side by side: of many classes those that are confused most."""
    shown = most_confused(verdicts.confusions_2KK, _MATRIX)
    names = drawable_names([verdicts.classes[k] for k in shown], 14)
    few = f", the {len(shown)} most confused of {len(verdicts.classes)} classes"
    title = f"{name}: confusion{few if len(shown) < len(verdicts.classes) else ''}"
    room = 0.4 + 0.07 * max(map(len, names))
    figure, both = panels(title, columns=2, width=4.2, height=4.2, left=room, bottom=room, right=0.7)
    for axes, what, counts_KK in zip(both, (verdicts.before, verdicts.after), verdicts.confusions_2KK, strict=True):
        shares_KK = 100 * counts_KK / np.maximum(1, counts_KK.sum(1, keepdims=True))
        image = axes.imshow(shares_KK[np.ix_(shown, shown)], cmap="Blues", vmin=0, vmax=100)
        errors = counts_KK.sum() - np.trace(counts_KK)
        label(axes, f"{what}: {errors} of {counts_KK.sum()} images wrong", "predicted class", "true class")
        axes.grid(visible=False)
        axes.set_xticks(range(len(shown)), names, rotation=90 if max(map(len, names)) > 2 and len(shown) > 4 else 0)
        axes.set_yticks(range(len(shown)), names)
        _write_counts(axes, counts_KK[np.ix_(shown, shown)], shares_KK[np.ix_(shown, shown)])
    bar = figure.colorbar(image, cax=both[-1].inset_axes([1.02, 0, 0.02, 1]))
    bar.set_label("share of the true class (%)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    save(figure, path)


def _write_counts(axes: Any, counts_KK: Array, shares_KK: Array) -> None:
    largest = np.argsort(-counts_KK, axis=None, kind="stable")[: min(_WRITTEN, np.count_nonzero(counts_KK))]
    for row, column in zip(*np.unravel_index(largest, counts_KK.shape), strict=True):
        colour = "white" if shares_KK[row, column] > 50 else "black"
        axes.text(column, row, counts_KK[row, column], ha="center", va="center", fontsize=7, color=colour)


def draw_classes(verdicts: Verdicts, path: Path, *, name: str) -> None:
    """Draw the accuracy of each class for both: of many classes those that changed most, then the worst."""
    images_K = np.maximum(1, verdicts.confusions_2KK[0].sum(1))
    before_K, after_K = (100 * np.diag(counts_KK) / images_K for counts_KK in verdicts.confusions_2KK)
    present = np.flatnonzero(verdicts.confusions_2KK[0].sum(1))
    worst = present[np.lexsort((after_K[present], -np.abs(after_K - before_K)[present]))[:_BARS]]
    shown = np.sort(worst)
    few = f", the {len(shown)} of {len(present)} that changed most" if len(shown) < len(present) else ""
    names = drawable_names([verdicts.classes[k] for k in shown], 14)
    sideways = max(map(len, names)) > 5
    room = 0.55 + 0.07 * max(map(len, names)) if sideways else 0.6
    title = f"{name}: accuracy of each class{few}"
    figure, (axes,) = panels(title, width=max(6, 0.3 * len(shown)), height=2.6, bottom=room, top=0.05)
    places = np.arange(len(shown))
    axes.vlines(places, before_K[shown], after_K[shown], color=AFTER, linewidth=1)
    axes.plot(places, before_K[shown], "o", color=BEFORE, markersize=8, label=verdicts.before)
    axes.plot(places, after_K[shown], "o", color=AFTER, markersize=5, label=verdicts.after)
    label(axes, "", "class (number of its test images)", "accuracy (%)", legend=True)
    texts = [f"{each}{' ' if sideways else chr(10)}({images_K[k]})" for each, k in zip(names, shown, strict=True)]
    axes.set_xticks(places, texts, rotation=90 if sideways else 0)
    save(figure, path)


def draw_curves(verdicts: Verdicts, path: Path, *, name: str) -> None:
    """Draw ROC, precision against recall, and how far probabilities can be relied on, for both."""
    from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

    figure, (roc, precision, calibration) = panels(name, columns=3, width=3.2, height=2.9)
    correct_2N = verdicts.said_2N == verdicts.labels_N
    networks = (
        (verdicts.before, verdicts.before_NK, BEFORE, "-"),
        (verdicts.after, verdicts.after_NK, AFTER, "--"),
    )
    for index, (what, logits_NK, colour, style) in enumerate(networks):
        drawn: dict[str, Any] = {"color": colour, "linestyle": style, "linewidth": 1.8}
        is_class, p = decisions(logits_NK, verdicts.labels_N)
        if is_class.any() and not is_class.all():
            false_positive, true_positive, _ = roc_curve(is_class, p)
            area = auc(false_positive, true_positive)
            roc.plot(100 * false_positive, 100 * true_positive, label=f"{what}: area {area:.4f}", **drawn)
            precisions, recalls, _ = precision_recall_curve(is_class, p)
            average = average_precision_score(is_class, p)
            precision.plot(100 * recalls, 100 * precisions, label=f"{what}: average {average:.4f}", **drawn)
        found = reliability(verdicts.confidences_2N[index], correct_2N[index])
        bins = np.flatnonzero(found.count_B)
        confidence_B, accuracy_B = 100 * found.confidence_B[bins], 100 * found.accuracy_B[bins]
        marker_area_B = 8 + 150 * found.count_B[bins] / found.count_B.sum()
        calibration.plot(confidence_B, accuracy_B, label=f"{what}: ECE {100 * found.ece:.2f} %", **drawn)
        calibration.scatter(confidence_B, accuracy_B, s=marker_area_B, color=colour, alpha=0.6)
    calibration.plot([0, 100], [0, 100], ":", color="0.4", linewidth=1)
    two = len(verdicts.classes) == 2
    (second,) = drawable_names([verdicts.classes[1]], 20) if two else ("",)
    which = f"is it {second}?" if two else "each class against all others, pooled"
    label(roc, f"ROC: {which}", "false positives (% of the others)", "true positives (%)", legend=True)
    label(precision, f"precision and recall: {which}", "recall (%)", "precision (%)", legend=True)
    title = "reliability of the first choice (area: images)"
    label(calibration, title, "confidence (%)", "accuracy (%)")
    calibration.legend(fontsize=7, loc="lower right")
    calibration.set_ylim(-3, 103)
    calibration.set_xlim(100 / len(verdicts.classes) - 2, 102)
    save(figure, path)


def draw_examples(verdicts: Verdicts, path: Path, *, name: str) -> None:
    """Draw images whose class compression changed, and images that it left misclassified, the most confident first."""
    (before_N, after_N), after_p_N = verdicts.said_2N, verdicts.confidences_2N[1]
    flipped, wrong = before_N != after_N, after_N != verdicts.labels_N
    groups = [np.flatnonzero(flipped), np.flatnonzero(wrong & ~flipped)]
    channels = verdicts.test.images.shape[3]
    few = "" if channels in (1, 3) else f" (channel{'s 1 to 3' if channels > 3 else ' 1'} of {channels})"
    title = f"{name}: images with another class: {len(groups[0])}; with the same wrong one: {len(groups[1])}{few}"
    figure, rows = panels(title, rows=2, width=1.3 * _EXAMPLES, height=1.15, left=0.3, right=0.1, bottom=0.1, top=0.7)
    for axes, chosen, what in zip(rows, groups, ("changed", "unchanged, wrong"), strict=True):
        ordered = chosen[np.argsort(-after_p_N[chosen], kind="stable")][:_EXAMPLES]
        captions = []
        for index in ordered:
            numbers = verdicts.labels_N[index], before_N[index], after_N[index]
            true, *said = drawable_names([verdicts.classes[k] for k in numbers], _CAPTION)
            said = said if what == "changed" else said[1:]
            lines = [f"true {true}", f"said {said[0]}", *(f"→ {name}" for name in said[1:])]
            captions.append("\n".join([*lines, f"{100 * after_p_N[index]:.0f} % sure"]))
        images = [drawable_image(image) for image in np.asarray(verdicts.test.images[ordered])]
        tiles(axes, images, captions, columns=_EXAMPLES)
        axes.set_ylabel(what, fontsize=8)
        if not len(ordered):
            axes.text(0.5, 0.5, f"none {what}", transform=axes.transAxes, ha="center", fontsize=8)
    save(figure, path)
