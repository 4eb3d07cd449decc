"""The pictures of one cell, in a folder for each family."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitsweep.plots.classification import Verdicts, draw_classes, draw_confusion, draw_curves, draw_examples
from bitsweep.plots.layers import draw_feature_maps, draw_histograms, draw_layers, write_layers
from bitsweep.plots.speed import draw_batches, draw_latency
from bitsweep.results import Compressed, Measurement, Splits, Trained


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The data from which the pictures of a finished cell are drawn.

    Attributes:
        name: of the cell, the title of its pictures.
        batch_sizes: of the protocol.
    """

    name: str
    precision: str
    backend: str
    splits: Splits
    trained: Trained
    compressed: Compressed
    measurement: Measurement
    batch_sizes: tuple[int, ...]

    @property
    def after(self) -> str:
        """What the artifact is called next to the float network."""
        return f"{self.precision} {self.backend}"


def draw_cell(evidence: Evidence, folder: Path) -> None:
    """Draw all that a cell has evidence of, as PNGs in ``classification/``, ``layers/`` and ``speed/`` of a folder."""
    logits_NK = np.load(evidence.measurement.folder / "logits.npy")
    baseline_NK = evidence.trained.test_logits_NK
    if np.isfinite(logits_NK).all() and np.isfinite(baseline_NK).all():
        verdicts = Verdicts(
            test=evidence.splits.test,
            classes=evidence.splits.classes,
            before_NK=baseline_NK,
            after_NK=logits_NK,
            before="fp32 baseline",
            after=evidence.after,
        )
        for draw in (draw_confusion, draw_classes, draw_curves, draw_examples):
            file = f"{draw.__name__.removeprefix('draw_')}.png"
            draw(verdicts, folder / "classification" / file, name=evidence.name)
    _draw_layers(evidence, folder / "layers")
    samples = evidence.measurement.folder / "latency_samples.npz"
    if samples.exists():
        with np.load(samples, allow_pickle=False) as loaded:
            samples_ms = dict(loaded)
        first, about = evidence.batch_sizes[0], {"name": evidence.name, "after": evidence.after}
        draw_latency(samples_ms, first, folder / "speed" / "latency.png", **about)
        run = [size for size in evidence.batch_sizes if f"candidate_b{size}_ms" in samples_ms]
        if len(run) > 1:
            draw_batches(evidence.measurement.metrics, samples_ms, run, folder / "speed" / "batches.png", **about)


def _draw_layers(evidence: Evidence, folder: Path) -> None:
    notes, views = evidence.compressed.layers, evidence.compressed.views
    if not notes:
        return
    write_layers(notes, views, folder / "layers.csv")
    draw_layers(notes, views, folder / "sizes.png", name=evidence.name)
    if views:
        draw_histograms(notes, views, folder / "histograms.png", name=evidence.name)
    if any(view.maps_2CHW is not None for view in views):
        draw_feature_maps(views, folder / "feature_maps.png", name=evidence.name, after=evidence.precision)
