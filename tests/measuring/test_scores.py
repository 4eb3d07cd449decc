"""Scores of probabilities, against scikit-learn's and against their definitions."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, log_loss, roc_auc_score

from bitsweep.measuring.scores import confidences, confusion, decisions, most_confused, reliability, scores
from bitsweep.stats import log_softmax


def logits(classes: int, *, images: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits in quarters, so that there are ties, of a classifier that is right more often than not; and labels."""
    random = np.random.default_rng(seed)
    labels_N = np.arange(images) % classes
    logits_NK = np.round(4 * (random.normal(size=(images, classes)) + 1.5 * np.eye(classes)[labels_N])) / 4
    return logits_NK.astype(np.float32), labels_N


def softmax(logits_NK: np.ndarray) -> np.ndarray:
    """With the rounding errors of the real thing, so that what is a tie there is one here."""
    return np.exp(log_softmax(logits_NK))


@pytest.mark.parametrize("classes", [2, 5])
def test_against_scikit_learn_and_the_definitions(classes: int) -> None:
    logits_NK, labels_N = logits(classes)
    p_NK, is_NK = softmax(logits_NK), np.eye(classes)[labels_N]
    np.testing.assert_allclose(p_NK, np.exp(logits_NK) / np.exp(logits_NK).sum(1, keepdims=True), rtol=1e-5)
    found, said_N = scores(logits_NK, labels_N), logits_NK.argmax(1)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels_N, said_N))
    assert found["f1_macro"] == pytest.approx(f1_score(labels_N, said_N, average="macro"))
    p_for_auc = p_NK[:, 1] if classes == 2 else p_NK
    assert found["auc"] == pytest.approx(roc_auc_score(labels_N, p_for_auc, multi_class="ovr"))
    assert found["log_loss"] == pytest.approx(-np.log(p_NK[is_NK.astype(bool)]).mean())
    assert found["log_loss"] == pytest.approx(log_loss(labels_N, p_NK))
    assert found["brier"] == pytest.approx(np.square(p_NK - is_NK).sum(1).mean())
    np.testing.assert_allclose(confidences(logits_NK), p_NK.max(1), rtol=1e-6)


def test_classes_without_images_count_for_nothing() -> None:
    logits_NK, labels_N = logits(5)
    few = labels_N < 2
    found = scores(logits_NK[few], labels_N[few])
    recalls = [(logits_NK[labels_N == k].argmax(1) == k).mean() for k in (0, 1)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert np.isfinite(list(found.values())).all()
    assert "auc" not in scores(logits_NK[labels_N == 3], labels_N[labels_N == 3])


def test_calibration_error_by_hand() -> None:
    found = reliability(np.array([0.05, 0.35, 0.4, 0.95, 1.0]), np.array([0, 1, 0, 1, 1]), bins=5)
    np.testing.assert_array_equal(found.count_B, [1, 2, 0, 0, 2])
    np.testing.assert_allclose(found.accuracy_B, [0, 0.5, 0, 0, 1])
    assert found.ece == pytest.approx((0.05 + abs(0.5 - 0.375) * 2 + 0.025 * 2) / 5)


def test_a_calibrated_classifier_has_no_calibration_error() -> None:
    random = np.random.default_rng(0)
    p_N = random.uniform(size=200_000)
    assert reliability(p_N, random.uniform(size=len(p_N)) < p_N).ece < 0.005


def test_decisions_of_two_classes_and_of_more() -> None:
    logits_NK, labels_N = logits(2)
    is_class, p = decisions(logits_NK, labels_N)
    np.testing.assert_array_equal(is_class, labels_N == 1)
    np.testing.assert_allclose(p, softmax(logits_NK)[:, 1])
    logits_NK, labels_N = logits(5)
    is_class, p = decisions(logits_NK, labels_N)
    pooled = average_precision_score(np.eye(5)[labels_N], softmax(logits_NK), average="micro")
    assert average_precision_score(is_class, p) == pytest.approx(pooled)
    is_class, p = decisions(logits_NK, labels_N, most=100)
    assert len(is_class) == len(p) == 100
    np.testing.assert_allclose(p[:10], softmax(logits_NK)[[0, 3]].ravel())


def test_confusion_and_what_is_confused_most() -> None:
    counts_KK = confusion(np.array([0, 1, 1, 2, 2]), np.array([0, 1, 2, 2, 0]), 4)
    np.testing.assert_array_equal(counts_KK, [[1, 0, 1, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
    many_KK = np.diag(np.full(30, 9))
    many_KK[7, 21] = 5
    other_KK = np.zeros_like(many_KK)
    other_KK[3, 4] = 6
    np.testing.assert_array_equal(most_confused(np.stack([many_KK, other_KK]), 4), [3, 4, 7, 21])
    np.testing.assert_array_equal(most_confused(counts_KK, 20), np.arange(4))
    assert counts_KK[0, 0] == 1
