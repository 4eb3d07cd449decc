"""The figures of a cell as metrics of MLflow, each in its section, and back."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bitsweep.metrics import METRICS, name_of, tracked_name
from bitsweep.results import Compressed, Epoch
from bitsweep.text import plain

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

#: Section of what a method records of single layers under a name of its own.
_OF_LAYERS = "layers/"


def figures(values: Mapping[str, float], timestamp: int) -> "list[Metric]":
    """Figures as MLflow takes them; all of them are declared."""
    from mlflow.entities import Metric

    return [Metric(tracked_name(name), value, timestamp, 0) for name, value in values.items()]


def training_curves(history: Sequence[Epoch], started: int) -> "list[Metric]":
    """How a baseline was trained, epoch by epoch.

    Args:
        started: when, in milliseconds since 1970.
    """
    from mlflow.entities import Metric

    return [
        Metric(tracked_name(name), float(getattr(epoch, name)), started + int(1000 * epoch.seconds * (step + 1)), step)
        for step, epoch in enumerate(history)
        for name in ("train_loss", "val_loss", "val_top1", "lr", "seconds")
    ]


def compression_curves(compressed: Compressed, timestamp: int) -> "list[Metric]":
    """What a method recorded step by step, and what is known of every layer, whose number is the step."""
    from mlflow.entities import Metric

    recorded = {
        tracked_name(curve.name) if curve.name in METRICS else allowed(f"{_OF_LAYERS}{curve.name}"): curve.values
        for curve in compressed.curves
    }
    by_layer = {tracked_name(name): values for name, values in _by_layer(compressed).items()}
    return [
        Metric(name, value, timestamp, step)
        for name, values in (*recorded.items(), *by_layer.items())
        for step, value in enumerate(values)
        if value is not None
    ]


def _by_layer(compressed: Compressed) -> dict[str, list[float | None]]:
    """Metric -> its value for each layer, in the order in which they run."""
    layers, stats = compressed.layers, {layer.name: layer for layer in compressed.layer_stats}
    return {
        "weights_sqnr_db": [layer.sqnr_db for layer in layers],
        "inputs_sqnr_db": [stats[layer.name].input_sqnr_db if layer.name in stats else None for layer in layers],
        "inputs_clipped": [layer.activation_clipped for layer in layers],
    }


def figures_of(run: "Run") -> dict[str, float]:
    """The figures of a run by the names of ``docs/measurement.md``; of what went in steps, the last value.

    Runs of before there were sections have plain names.
    """
    found = {name_of(name).removeprefix(_OF_LAYERS): value for name, value in run.data.metrics.items()}
    return {name: value for name, value in found.items() if name not in METRICS or METRICS[name].step != "layer"}


def allowed(name: str) -> str:
    """A name of anybody's as MLflow takes it."""
    return re.sub(r"[^\w\-. :/]", "_", plain(name))[:250]
