from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from sklearn.metrics import roc_auc_score

from bitsweep.plots import classification
from bitsweep.plots.classification import Verdicts
from bitsweep.results import Split


def verdicts(classes: int, *, images: int = 240, noise: float = 0.5) -> Verdicts:
    """A classifier that is right more often than not, and the same with noise."""
    random = np.random.default_rng(0)
    labels_N = np.arange(images) % classes
    before_NK = random.normal(size=(images, classes)) + 3 * np.eye(classes)[labels_N]
    return Verdicts(
        test=Split(images=random.integers(0, 256, (images, 8, 8, 3), dtype=np.uint8), labels=labels_N),
        classes=tuple(f"a class of number {k}" for k in range(classes)),
        before_NK=before_NK,
        after_NK=before_NK + noise * random.normal(size=before_NK.shape),
        before="fp32",
        after="int8",
    )


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_confusion_is_written_into_both_matrices(drawn: list[Any], tmp_path: Path) -> None:
    given = verdicts(4)
    classification.draw_confusion(given, tmp_path / "picture.png", name="a cell")
    for axes, logits_NK in zip(drawn[0].axes[:2], (given.before_NK, given.after_NK), strict=True):
        said_N = logits_NK.argmax(1)
        assert f"{(said_N != given.labels_N).sum()} of 240 images wrong" in axes.get_title()
        assert sum(map(int, texts(axes))) == 240
        (shares,) = axes.images
        assert shares.get_array()[1, 1] == pytest.approx(100 * (said_N[given.labels_N == 1] == 1).mean())


def test_of_many_classes_the_most_confused_are_shown(drawn: list[Any], tmp_path: Path) -> None:
    given = verdicts(60)
    classification.draw_confusion(given, tmp_path / "matrix.png", name="a cell")
    classification.draw_classes(given, tmp_path / "classes.png", name="a cell")
    matrix, classes = drawn
    assert "20 most confused of 60 classes" in matrix.get_suptitle()
    assert matrix.axes[0].images[0].get_array().shape == (20, 20)
    assert "the 30 of 60 that changed most" in classes.get_suptitle()
    assert len(classes.axes[0].get_xticklabels()) == 30


def test_accuracy_of_each_class(drawn: list[Any], tmp_path: Path) -> None:
    given = verdicts(4)
    classification.draw_classes(given, tmp_path / "picture.png", name="a cell")
    before, after = (line.get_ydata() for line in drawn[0].axes[0].lines)
    for values, logits_NK in ((before, given.before_NK), (after, given.after_NK)):
        right_N = logits_NK.argmax(1) == given.labels_N
        assert list(values) == pytest.approx([100 * right_N[given.labels_N == k].mean() for k in range(4)])


@pytest.mark.parametrize("classes", [2, 5])
def test_curves_name_their_areas(classes: int, drawn: list[Any], tmp_path: Path) -> None:
    given = verdicts(classes, noise=2)
    classification.draw_curves(given, tmp_path / "picture.png", name="a cell")
    roc, precision, calibration = drawn[0].axes
    assert ("is it a class of number 1?" in roc.get_title()) == (classes == 2)
    p_NK = np.exp(given.after_NK) / np.exp(given.after_NK).sum(1, keepdims=True)
    is_NK = np.eye(classes)[given.labels_N]
    area = roc_auc_score(is_NK[:, 1], p_NK[:, 1]) if classes == 2 else roc_auc_score(is_NK, p_NK, average="micro")
    labels = [text.get_text() for text in roc.get_legend().get_texts()]
    assert labels[1] == f"int8: area {area:.4f}"
    assert "average 0." in precision.get_legend().get_texts()[0].get_text()
    assert "ECE " in calibration.get_legend().get_texts()[1].get_text()
    assert calibration.get_xlim()[0] == pytest.approx(100 / classes - 2)


def test_examples_say_what_became_of_them(drawn: list[Any], tmp_path: Path) -> None:
    given = verdicts(4, noise=2)
    classification.draw_examples(given, tmp_path / "picture.png", name="a cell")
    changed, unchanged = drawn[0].axes
    said_2N = given.said_2N
    flipped = (said_2N[0] != said_2N[1]).sum()
    assert f"images with another class: {flipped};" in drawn[0].get_suptitle()
    assert len(changed.images) == len(texts(changed)) == 8
    surest = max(given.confidences_2N[1][said_2N[0] != said_2N[1]])
    assert texts(changed)[0].endswith(f"{100 * surest:.0f} % sure")
    assert all("→" in text for text in texts(changed))
    wrong = ((said_2N[0] == said_2N[1]) & (said_2N[1] != given.labels_N)).sum()
    assert len(unchanged.images) == min(8, wrong)


def test_captions_of_examples_keep_apart_whatever_classes_are_called(drawn: list[Any], tmp_path: Path) -> None:
    given = verdicts(4, noise=2)
    given = replace(given, classes=tuple(f"{'naeo' * 9}{number}" for number in range(4)))
    classification.draw_examples(given, tmp_path / "picture.png", name="a cell")
    renderer = FigureCanvasAgg(drawn[0]).get_renderer()
    for axes in drawn[0].axes:
        boxes = [text.get_window_extent(renderer) for text in axes.texts]
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_where_nothing_changed_that_is_said(drawn: list[Any], tmp_path: Path) -> None:
    classification.draw_examples(verdicts(4, noise=0), tmp_path / "picture.png", name="a cell")
    assert texts(drawn[0].axes[0]) == ["none changed"]


@pytest.mark.parametrize(
    ("shape", "kind", "drawn_shape", "said"),
    [
        ((24, 12, 1), np.uint8, (24, 12), ""),
        ((12, 24, 3), np.uint8, (12, 24, 3), ""),
        ((8, 8, 2), np.uint8, (8, 8), "(channel 1 of 2)"),
        ((12, 24, 4), np.uint8, (12, 24, 3), "(channels 1 to 3 of 4)"),
        ((24, 12, 16), np.uint16, (24, 12, 3), "(channels 1 to 3 of 16)"),
    ],
)
def test_images_of_any_channels_are_drawn_in_their_proportions(
    shape: tuple[int, ...], kind: type, drawn_shape: tuple[int, ...], said: str, drawn: list[Any], tmp_path: Path
) -> None:
    given = verdicts(4, noise=2)
    images = np.random.default_rng(0).integers(0, 4000 if kind == np.uint16 else 256, (240, *shape)).astype(kind)
    given = replace(given, test=Split(images=images, labels=given.test.labels))
    classification.draw_examples(given, tmp_path / "picture.png", name="a cell")
    first = drawn[0].axes[0].images[0]
    left, right, bottom, top = first.get_extent()
    assert (right - left) / (top - bottom) == pytest.approx(shape[1] / shape[0])
    assert 0 <= left < right <= 0.9 + 1e-9
    assert first.get_array().shape == drawn_shape
    assert (first.get_array().min(), first.get_array().max()) == (0, 255) or kind == np.uint8
    assert drawn[0].get_suptitle().endswith(said)
