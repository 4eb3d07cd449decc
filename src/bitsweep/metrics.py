"""Every metric, declared once: what it is called, its unit, which direction is better, what it means, how it is shown.

Tables, pictures and ``docs/measurement.md`` take their words from here, and MLflow the names, each in its section.
"""

import functools
import math
import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure of a cell or a baseline.

    Attributes:
        name: in ``cells.csv`` and from Python.
        unit: empty for a plain number.
        better: whether ``more`` or ``less`` of it is better; empty where neither is.
        section: what it is about; MLflow's charts are grouped by it.
        leaf: its name within the section, where that is not the name without the section's.
        step: what it is recorded for one by one, such as an epoch; empty for a single figure.
        text: what it means, a sentence.
        title: of its column in tables; empty for what has none.
        form, scale: how it is shown: a format, of the value times a number; without a format three digits that count.
    """

    name: str
    unit: str = ""
    better: Literal["more", "less", ""] = ""
    section: str
    leaf: str = ""
    step: Literal["", "epoch", "layer"] = ""
    text: str
    title: str = ""
    form: str = ""
    scale: float = 1

    @property
    def tracked(self) -> str:
        """Its name in MLflow, e.g. ``latency/p50_ms``."""
        return f"{self.section}/{self.leaf or self.name.removeprefix(f'{self.section}_')}"

    def shown(self, value: float) -> str:
        """A value as text, without the unit."""
        return format(self.scale * value, self.form) if self.form else _three_digits(self.scale * value)


def _three_digits(value: float) -> str:
    """A number with three digits that count, and all that stand before the point."""
    rounded = float(f"{value:.2e}")
    decimals = 2 - math.floor(math.log10(abs(rounded))) if rounded else 0
    return f"{rounded if decimals > 0 else value:.{max(0, decimals)}f}"


_accuracy = functools.partial(Metric, section="accuracy")
_validation = functools.partial(Metric, section="validation")
_probability = functools.partial(Metric, section="probabilities")
_parity = functools.partial(Metric, section="parity")
_latency = functools.partial(Metric, section="latency")
_speed = functools.partial(Metric, section="speed")
_size = functools.partial(Metric, section="size")
_memory = functools.partial(Metric, section="memory")
_layers = functools.partial(Metric, section="layers")
_layer = functools.partial(_layers, step="layer")
_training = functools.partial(Metric, section="training")
_epoch = functools.partial(_training, step="epoch")
_cost = functools.partial(Metric, section="cost")

_DECLARED = [
    _accuracy(
        name="top1",
        unit="share",
        better="more",
        text="Test images whose first choice is right.",
        title="top-1 %",
        form=".2f",
        scale=100,
    ),
    _accuracy(
        name="top1_low", unit="share", better="more", text="Lower end of its Wilson interval.", form=".2f", scale=100
    ),
    _accuracy(
        name="top1_high", unit="share", better="more", text="Upper end of its Wilson interval.", form=".2f", scale=100
    ),
    _accuracy(name="test_images", unit="images", text="Test images that accuracy is measured on.", form=".0f"),
    _accuracy(
        name="top1_drop_pp",
        unit="points",
        better="less",
        text="Top-1 of the fp32 baseline minus this one's.",
        title="drop pp",
        form="+.2f",
    ),
    _accuracy(
        name="flips",
        unit="images",
        better="less",
        text="Images that baseline and artifact do not both have right or both wrong.",
        title="flips",
        form=".0f",
    ),
    _accuracy(name="mcnemar_p", unit="p-value", text="McNemar's exact test of these.", form=".2g"),
    _accuracy(
        name="agreement", unit="share", better="more", text="Images to which baseline and artifact give the same class."
    ),
    _accuracy(
        name="sqnr_db",
        unit="dB",
        better="more",
        text="Signal-to-noise ratio of the logits, the baseline's being the signal.",
    ),
    _accuracy(
        name="mean_kl", unit="nats", better="less", text="Mean divergence of the probabilities from the baseline's."
    ),
    _validation(
        name="validation_images", unit="images", text="Validation images that cells are judged on.", form=".0f"
    ),
    _validation(
        name="validation_top1",
        unit="share",
        better="more",
        text="Those of them whose first choice is right.",
        form=".2f",
        scale=100,
    ),
    _validation(
        name="validation_drop_pp",
        unit="points",
        better="less",
        text="Top-1 of the fp32 baseline minus this one's, on these images.",
        form="+.2f",
    ),
    _validation(
        name="validation_flips",
        unit="images",
        better="less",
        text="Those that baseline and artifact do not both have right or both wrong.",
        form=".0f",
    ),
    _probability(
        name="balanced_accuracy",
        unit="share",
        better="more",
        text="Mean over the classes of the share of their images that is recognised.",
    ),
    _probability(name="f1_macro", unit="share", better="more", text="Mean of F1 over the classes."),
    _probability(
        name="auc",
        unit="share",
        better="more",
        text="Mean over the classes of the area under the ROC curve of each against all others.",
    ),
    _probability(name="log_loss", unit="nats", better="less", text="Mean cross entropy."),
    _probability(
        name="brier",
        unit="0 to 2",
        better="less",
        text="Mean squared error of the probabilities, summed over the classes.",
    ),
    _probability(
        name="ece", unit="share", better="less", text="Expected calibration error of the first choice, in 15 bins."
    ),
    _parity(
        name="parity_agreement",
        unit="share",
        better="more",
        text="Images to which engine and reference give the same class.",
    ),
    _parity(
        name="parity_sqnr_db",
        unit="dB",
        better="more",
        text="Signal-to-noise ratio of the logits, the reference's being the signal; none where both are identical.",
    ),
    _latency(name="latency_p50_ms", unit="ms", better="less", text="Median time of one batch.", title="p50 ms"),
    _latency(name="latency_p50_ms_low", unit="ms", better="less", text="Lower end of its bootstrap interval."),
    _latency(name="latency_p50_ms_high", unit="ms", better="less", text="Upper end of its bootstrap interval."),
    _latency(name="latency_p90_ms", unit="ms", better="less", text="90th percentile of it."),
    _latency(name="latency_p99_ms", unit="ms", better="less", text="99th percentile of it."),
    _speed(name="throughput_ips", unit="images/s", better="more", text="Batch size by median time."),
    _speed(
        name="speedup",
        unit="ratio",
        better="more",
        text="Time of the same engine's fp32 artifact by this one's.",
        title="speed-up",
        form=".2f",
    ),
    _speed(name="speedup_low", unit="ratio", better="more", text="Lower end of its interval.", form=".2f"),
    _speed(name="speedup_high", unit="ratio", better="more", text="Upper end of its interval.", form=".2f"),
    _speed(
        name="speedup_between",
        unit="share",
        text="Standard deviation of its logarithm from process to process, which its interval has.",
        form=".3f",
    ),
    _latency(name="load_ms", unit="ms", better="less", text="Time to load the artifact."),
    _latency(name="first_run_ms", unit="ms", better="less", text="Time of the first run after that."),
    _size(
        name="size_mb",
        leaf="artifact_mb",
        unit="10^6 bytes",
        better="less",
        text="The artifact's files as stored.",
        title="size MB",
    ),
    _size(name="size_ratio", unit="ratio", better="less", text="Size by that of the same engine's fp32 artifact."),
    _size(name="size_bound_mb", unit="10^6 bytes", text="What the parameters need at their bits, scales included."),
    _size(
        name="bits_per_parameter",
        unit="bits",
        better="less",
        text="Bits of weights and biases as stored, scales included, by their number.",
    ),
    _memory(
        name="peak_rss_mb",
        unit="10^6 bytes",
        better="less",
        text="Growth of the resident set while the artifact is loaded and run.",
        title="memory MB",
        form=".0f",
    ),
    _cost(name="calibration_images", unit="images", text="Images that the method was calibrated on.", form=".0f"),
    _layers(
        name="int8_mac_share",
        unit="share",
        better="more",
        text="Multiply-accumulates that the engine executes on integer kernels.",
    ),
    _layer(
        name="weights_sqnr_db",
        unit="dB",
        better="more",
        text="Signal-to-noise ratio of the weights of every layer, by its number.",
    ),
    _layer(
        name="inputs_sqnr_db",
        unit="dB",
        better="more",
        text="Signal-to-noise ratio of the inputs of every layer on validation images, by its number.",
    ),
    _layer(
        name="inputs_clipped",
        unit="share",
        better="less",
        text="Values that every layer reads beyond its range, by its number.",
    ),
    _latency(
        name="device_p50_ms",
        unit="ms",
        better="less",
        text="Median time of one batch on the GPU, without copies.",
        title="device ms",
    ),
    _memory(
        name="peak_device_mb",
        unit="10^6 bytes",
        better="less",
        text="Growth of the GPU's memory in use while the artifact is loaded and run.",
        title="device MB",
        form=".0f",
    ),
    _training(name="best_epoch", unit="epoch", text="The epoch that was kept."),
    _cost(name="train_s", unit="s", text="Time that the training took.", form=".0f"),
    _epoch(name="train_loss", unit="nats", better="less", text="Loss on training images, after every epoch."),
    _epoch(name="val_loss", unit="nats", better="less", text="Loss on validation images, after every epoch."),
    _epoch(name="val_top1", unit="share", better="more", text="Top-1 on validation images, after every epoch."),
    _epoch(name="lr", text="Learning rate at the end of every epoch."),
    _epoch(name="seconds", leaf="epoch_s", unit="s", text="Time that every epoch took."),
]
_STAGES = [
    _cost(name=f"{stage}_s", leaf=f"{leaf}_s", unit="s", text=f"Time that {what} took.")
    for stage, (leaf, what) in {
        "dataset": ("decode", "decoding the data"),
        "baseline": ("baseline", "training the baseline"),
        "compressed": ("compress", "compressing"),
        "screening": ("screen", "running the reference on validation images"),
        "artifact": ("lower", "lowering"),
        "probe": ("probe", "the probe of the kernels"),
        "inspection": ("inspect", "inspecting the files"),
        "measurement": ("measure", "measuring"),
        "evidence": ("evidence", "writing and drawing the evidence"),
        "baseline_evidence": ("baseline_evidence", "the same for the baseline"),
    }.items()
]

#: Every metric by its name.
METRICS: dict[str, Metric] = {metric.name: metric for metric in (*_DECLARED, *_STAGES)}


#: A batch size other than the protocol's first, at the end of a name.
_BATCH = re.compile(r"_b\d+$")
_BY_TRACKED = {metric.tracked: metric for metric in METRICS.values()}


def batch_of(name: str) -> str:
    """The end of a metric's name that says its batch size, ``_b`` and the size; empty for the protocol's first."""
    found = _BATCH.search(name)
    return found.group() if found else ""


def metric_of(name: str) -> Metric:
    """What a metric is, at whatever batch size."""
    return METRICS[_BATCH.sub("", name)]


def tracked_name(name: str) -> str:
    """What MLflow calls a metric, that of another batch size too."""
    return metric_of(name).tracked + batch_of(name)


def name_of(tracked: str) -> str:
    """The name of a metric in MLflow without its section; stores of before there were sections have it as it is."""
    metric = _BY_TRACKED.get(_BATCH.sub("", tracked))
    return metric.name + batch_of(tracked) if metric else tracked


def described() -> str:
    """All metrics as a table in Markdown, which the documentation holds."""
    lines = ["| name | in MLflow | unit | better | meaning |", "|---|---|---|---|---|"]
    for metric in METRICS.values():
        lines.append(f"| `{metric.name}` | `{metric.tracked}` | {metric.unit} | {metric.better} | {metric.text} |")
    return "\n".join(lines)
