"""The pictures of one cell, in a folder for each family."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from bitsweep.plots import channels
from bitsweep.plots.classification import Verdicts, draw_classes, draw_confusion, draw_curves, draw_examples
from bitsweep.plots.layers import draw_feature_maps, draw_histograms, draw_layers, write_layers
from bitsweep.plots.speed import draw_batches, draw_latency
from bitsweep.results import Array, Compressed, Measurement, Splits, Trained


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The data from which the pictures of a cell are drawn.

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

    @cached_property
    def verdicts(self) -> Verdicts | None:
        """What baseline and artifact say of the test images; None where either does not tell."""
        if not self.measurement.logits:
            return None
        before_NK, after_NK = self.trained.test_logits_NK, np.load(self.measurement.logits)
        if not (np.isfinite(after_NK).all() and np.isfinite(before_NK).all()):
            return None
        return Verdicts(
            test=self.splits.test, classes=self.splits.classes, before_NK=before_NK, after_NK=after_NK,
            before="fp32 baseline", after=self.after,
        )  # fmt: skip

    @cached_property
    def samples_ms(self) -> dict[str, Array]:
        """Raw latencies; empty where nothing was timed."""
        if not self.measurement.latency_samples:
            return {}
        with np.load(self.measurement.latency_samples, allow_pickle=False) as loaded:
            return dict(loaded)


def pictures(shown: Shown) -> dict[str, Callable[[Path], None]]:
    """All that a cell has something to draw of: name of a file -> what draws it."""
    name, after = shown.name, shown.after
    found: dict[str, Callable[[Path], None]] = {}
    if verdicts := shown.verdicts:
        for draw in (draw_confusion, draw_classes, draw_curves, draw_examples):
            file = f"{draw.__name__.removeprefix('draw_')}.png"
            found[f"classification/{file}"] = partial(draw, verdicts, name=name)
    layers, stats = shown.compressed.layers, shown.compressed.layer_stats
    if layers:
        found["layers/layers.csv"] = partial(write_layers, layers, stats)
        found["layers/sizes.png"] = partial(draw_layers, layers, stats, name=name)
    if layers and stats:
        found["layers/histograms.png"] = partial(draw_histograms, layers, stats, name=name)
    if any(layer.maps_2CHW is not None for layer in stats):
        found["layers/feature_maps.png"] = partial(draw_feature_maps, stats, name=name, after=shown.precision)
    for table in shown.compressed.tables:
        if table.name == channels.TABLE and table.rows:
            found["layers/channels.png"] = partial(channels.draw_channels, table)
    if samples_ms := shown.samples_ms:
        first = shown.batch_sizes[0]
        found["speed/latency.png"] = partial(draw_latency, samples_ms, first, name=name, after=after)
        run = [size for size in shown.batch_sizes if f"candidate_b{size}_ms" in samples_ms]
        if len(run) > 1:
            metrics = shown.measurement.metrics
            found["speed/batches.png"] = partial(draw_batches, metrics, samples_ms, run, name=name, after=after)
    return found
