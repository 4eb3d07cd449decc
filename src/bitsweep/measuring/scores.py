"""Quality of a classifier's probabilities, beyond its top-1 accuracy.

Shape letters: N images, K classes, B bins.
"""

from dataclasses import dataclass

import numpy as np

from bitsweep.results import Array
from bitsweep.stats import log_softmax


def scores(logits_NK: Array, labels_N: Array) -> dict[str, float]:
    """Scores of finite logits against labels, by the names of ``docs/measurement.md``.

    ``balanced_accuracy``, ``f1_macro`` and ``auc`` are plain means over the classes that have images, so that a rare
    class counts as much as a frequent one; ``auc`` is that of each class against all others (arXiv 2008.05756 tells
    the first two apart), and missing where only one class has images. ``brier`` is the sum over all classes, from 0
    to 2 (Brier, Monthly Weather Review 78, 1950). ``log_loss`` is in nats.
    """
    labels_N, log_p_NK = np.asarray(labels_N), log_softmax(logits_NK)
    classes, predicted_N, p_NK = np.unique(labels_N), logits_NK.argmax(1), np.exp(log_p_NK)
    images_K, said_K, right_K = (
        np.bincount(of, minlength=p_NK.shape[1])[classes]
        for of in (labels_N, predicted_N, labels_N[labels_N == predicted_N])
    )
    of_label_N = np.arange(len(labels_N)), labels_N
    found = {
        "balanced_accuracy": float(np.mean(right_K / images_K)),
        "f1_macro": float(np.mean(2 * right_K / (images_K + said_K))),
        "log_loss": float(-log_p_NK[of_label_N].mean()),
        "brier": float((np.square(p_NK).sum(1) - 2 * p_NK[of_label_N] + 1).mean()),
        "ece": reliability(confidences(logits_NK), predicted_N == labels_N).ece,
    }
    if len(classes) > 1:
        found["auc"] = float(np.mean([_area_under_roc(labels_N == k, p_NK[:, k]) for k in classes]))
    return found


def _area_under_roc(is_class_N: Array, p_N: Array) -> float:
    """How often an image of a class has a higher probability than another; a tie is half (Mann and Whitney, 1947).

    The same as scikit-learn's ``roc_auc_score``, which takes half a minute for a thousand classes.
    """
    inside, outside = p_N[is_class_N], np.sort(p_N[~is_class_N])
    below = sum(np.searchsorted(outside, inside, side).sum() for side in ("left", "right")) / 2
    return float(below / (len(inside) * len(outside)))


def confidences(logits_NK: Array) -> Array:
    """The probability of the likeliest class of each image [N]."""
    result: Array = 1 / np.exp(logits_NK - logits_NK.max(1, keepdims=True)).sum(1, dtype=np.float64)
    return result


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How often predictions with about the same confidence are right.

    Attributes:
        confidence_B, accuracy_B: means in bins of equal width from 0 to 1; 0 where a bin is empty.
        count_B: predictions in each bin.
    """

    confidence_B: Array
    accuracy_B: Array
    count_B: Array

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean gap between confidence and accuracy (Guo et al., arXiv 1706.04599)."""
        return float(np.average(np.abs(self.accuracy_B - self.confidence_B), weights=self.count_B))


def reliability(confidence_N: Array, correct_N: Array, *, bins: int = 15) -> Reliability:
    """Sort predictions into bins by their confidence in [0, 1]; the upper end belongs to a bin."""
    bin_N = np.clip(np.ceil(confidence_N * bins).astype(int) - 1, 0, bins - 1)
    count_B = np.bincount(bin_N, minlength=bins)
    sums = (np.bincount(bin_N, weights=values, minlength=bins) for values in (confidence_N, correct_N))
    confidence_B, accuracy_B = (values / np.maximum(count_B, 1) for values in sums)
    return Reliability(confidence_B=confidence_B, accuracy_B=accuracy_B, count_B=count_B)


def decisions(logits_NK: Array, labels_N: Array, *, most: int = 400_000) -> tuple[Array, Array]:
    """What ROC and precision-recall curves are drawn from: is it this class, and with what probability.

    Two classes make one decision an image: is it the second class. More classes make K, each against all others, and
    they are pooled (micro-average).

    Args:
        most: decisions; of more, those of evenly spread images are taken.

    Returns:
        Whether it is the class, bool, and the probability of that, one each a decision.
    """
    step = -(-logits_NK.size // most)
    p_NK, is_NK = np.exp(log_softmax(logits_NK[::step])), labels_N[::step, None] == np.arange(logits_NK.shape[1])
    if p_NK.shape[1] == 2:
        return is_NK[:, 1], p_NK[:, 1]
    return is_NK.ravel(), p_NK.ravel()


def confusion(predicted_N: Array, labels_N: Array, classes: int) -> Array:
    """Number of images of each true class (rows) that are called each class (columns), int64 [K, K]."""
    counts = np.bincount(np.asarray(labels_N) * classes + predicted_N, minlength=classes * classes)
    return counts.reshape(classes, classes)


def most_confused(confusions: Array, most: int) -> Array:
    """Numbers of the classes that are taken for each other most often, in rising order; all if there are no more.

    Args:
        confusions: int64 [..., K, K], whose errors are added up.
    """
    errors_KK = confusions.reshape(-1, *confusions.shape[-2:]).sum(0)
    np.fill_diagonal(errors_KK, 0)
    worst_first = np.argsort(-errors_KK, axis=None, kind="stable")
    pairs = np.stack(np.unravel_index(worst_first, errors_KK.shape), axis=1)
    classes, first_seen = np.unique(pairs, return_index=True)
    chosen: Array = np.sort(classes[np.argsort(first_seen)[:most]])
    return chosen
