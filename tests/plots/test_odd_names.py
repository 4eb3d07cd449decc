"""Every picture of a cell, with names that would act on what draws them if they were let."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitsweep.plots.cell import Shown, pictures
from bitsweep.plots.figures import drawable
from bitsweep.plots.records import records
from bitsweep.results import (
    Compressed,
    Curve,
    Distribution,
    LayerRecord,
    LayerStats,
    Measurement,
    Split,
    Splits,
    Table,
    Trained,
)

ODD = (
    "$x^{", "$\\frac{1}{0}$", "a_b^c", "\\alpha\\n", "<script>alert(1)</script>", "a|b", "`id`", "\x1b[31mred\x1b[0m",
    "two\nlines", "\u202egnp", "\u05d7\u05ea\u05d5\u05dc", "\U0001f408", "\u732b", "n" * 300, "%s {x} %(y)s", "\udcff",
    "", " ", "\0",
)  # fmt: skip


def shown(names: tuple[str, ...], folder: Path) -> Shown:
    """A cell whose classes and layers have these names."""
    random, k = np.random.default_rng(0), len(names)
    labels_N = np.arange(20 * k) % k
    split = Split(images=random.integers(0, 256, (20 * k, 8, 8, 1), dtype=np.uint8), labels=labels_N)
    before_NK = random.normal(size=(20 * k, k)) + 2 * np.eye(k)[labels_N]
    folder.mkdir(exist_ok=True)
    np.save(folder / "logits.npy", before_NK + random.normal(size=before_NK.shape))
    for_speed = {f"{which}_b{b}_ms": np.full(60, 1.0 * b) for which in ("fp32", "candidate") for b in (1, 8)}
    lengths = {name.replace("_ms", "_block_lengths"): np.full(6, 10) for name in for_speed}
    np.savez(folder / "latency_samples.npz", **for_speed, **lengths)
    spread = Distribution(low=-1.0, high=1.0, mean=0.0, std=0.3, counts=(1, 5, 2))
    layers = tuple(
        LayerRecord(name=name, kind="conv2d", weights="s8", activations="u8", parameters=9 + i, stored_bits=72)
        for i, name in enumerate(names)
    )
    stats = tuple(
        LayerStats(name=name, weights=spread, inputs=spread, maps_2CHW=random.normal(size=(2, 4, 4, 4)))
        for name in names
    )
    return Shown(
        name=names[0],
        precision="int8",
        backend="onnxruntime",
        splits=Splits(train=split, val=split, test=split, classes=names, mean_C=(0.5,), std_C=(0.5,), fingerprint="0"),
        trained=Trained(
            checkpoint=folder,
            history=(),
            best_epoch=0,
            val_top1=0.5,
            device="cpu",
            test_logits_NK=before_NK,
            validation_right_N=np.zeros(0, bool),
        ),
        compressed=Compressed(
            program=folder,
            layers=layers,
            curves=(),
            tables=(),
            layer_stats=stats[:4],
            reference_N=np.arange(len(before_NK)),
            reference_NK=before_NK,
        ),
        measurement=Measurement(metrics={}, flags=(), verdict="", findings=(), details={}, tables=(), folder=folder),
        batch_sizes=(1, 8),
    )


@pytest.mark.parametrize("names", [ODD, ODD[:2], tuple(name + "$" for name in ODD)], ids=["all", "two", "dollars"])
@pytest.mark.slow
def test_all_pictures_are_drawn(names: tuple[str, ...], drawn: list[Any], tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    for name, draw in pictures(shown(names, tmp_path / "cell")).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        draw(folder / name)
    assert len(drawn) == 9
    for picture in drawn:
        assert max(picture.get_size_inches()) < 30


def test_names_are_shown_as_they_are(drawn: list[Any], tmp_path: Path) -> None:
    from bitsweep.plots.classification import draw_classes

    verdicts = shown(("$x^{2}$", "a_b"), tmp_path).verdicts
    assert verdicts
    draw_classes(verdicts, tmp_path / "classes.png", name="$n_1$")
    assert drawn[0].get_suptitle() == "$n_1$: accuracy of each class"
    assert [text.get_text() for text in drawn[0].axes[0].get_xticklabels()] == ["$x^{2}$ (20)", "a_b (20)"]
    assert not any(text.get_parse_math() for text in drawn[0].axes[0].get_xticklabels())


def test_records_are_drawn(drawn: list[Any], tmp_path: Path) -> None:
    table = Table(name="sensitivity", columns=("layer", "$x^{", "y|<b>"), rows=tuple((name, 1.0, 2) for name in ODD))
    curves = [Curve(name=f"error.{name}", values=(1.0, 0.5), step="$e$") for name in ODD]
    for name, write in records(curves, [table]).items():
        write(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["error.png", "sensitivity.csv", "sensitivity.png"]
    assert len(drawn) == 2


def test_what_the_font_lacks_is_a_box() -> None:
    assert drawable("\u732b \U0001f408 \u2192") == "\u25a1 \u25a1 \u2192"
    assert drawable("first\nsecond\x1b") == "first\nsecond\\x1b"
    assert len(drawable("n" * 300)) == 120
