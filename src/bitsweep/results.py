"""The things that flow from stage to stage. All are frozen; none computes anything.

    RawData -> Splits -> Trained -> Compressed -> Artifact -> Measurement -> Outcome

Shape letters: N images, K classes, C channels, H height, W width. Images are uint8 or uint16 [N, H, W, C].
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    import onnx
    import torch

    from bitsweep.data.pixels import Framing

Array = np.ndarray[Any, Any]
#: Table of a method that rounded layers on fewer images than it watched, because no more fit in memory: both numbers.
ROUNDED_ON_FEWER = "calibration"
#: What methods are calibrated on where nothing else was given.
USUAL_CALIBRATION = "training images"
#: Flag of cells whose baseline has learned nothing: their speed and size can be believed.
AT_CHANCE = "at chance"
#: Flag of integer cells whose engine computes more in float than on integers.
MOSTLY_FLOAT = "mostly float"
#: File of the latency of every run that was timed.
LATENCY_SAMPLES = "latency_samples.npz"
#: Channels, height and width of the images that a network takes.
Shape = tuple[int, int, int]


class Images(Protocol):
    """Images uint8 or uint16 [N, H, W, C]: an array, or files that are decoded when asked for by their numbers."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, chosen_N: Array, /) -> Array: ...


class Pixels(Images, Protocol):
    """The same in an array, or in a file that is used like one."""

    @property
    def nbytes(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, chosen_N: "Array | slice", /) -> Array: ...


@dataclass(frozen=True, kw_only=True)
class RawSplit:
    """Images uint8 or uint16 [N, H, W, C] with their labels int64 [N]."""

    images: Images
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Split(RawSplit):
    """The same with images that are decoded; those of the store are read when they are asked for."""

    images: Pixels


@dataclass(frozen=True, kw_only=True)
class RawData:
    """A data set as it comes: training and test images, decoded or to be, and the names of the classes.

    Attributes:
        train: empty where there is nothing to train on.
        calibration: images without labels, given to choose ranges on; None where those are to be taken from the others.
        test_files: of the test images, in their order, where each comes in a file.
        crop, white: see `bitsweep.data.pixels.StoredForm`.
        framing: what the network made of them, if anything.
    """

    train: RawSplit
    test: RawSplit
    classes: tuple[str, ...]
    calibration: Images | None = None
    test_files: tuple[Path, ...] = ()
    crop: float = 1.0
    white: int = 65_535
    framing: "Framing | None" = None


@dataclass(frozen=True, kw_only=True)
class Splits:
    """A data set ready for use: validation images come from the training images, never from the test images that count.

    Where there are no training images, validation images were held out from the test images for calibration; there are
    none of them where images were given for it.

    Attributes:
        unlabelled: images that were given to choose ranges on, uint8 [N, H, W, C].
        mean_C, std_C: of the training pixels, or else of the calibration images', or what the model has instead, in
            units of [0, 1].
        bgr: whether the network takes the channels in the reverse order; mean and deviation are in its order.
        fingerprint: SHA-256 of images, labels and class names.
        crop, white, framing: see `RawData`.
        originals: files of some of the `recorded` test images, as they came, by their numbers among those.
    """

    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    mean_C: tuple[float, ...]
    std_C: tuple[float, ...]
    fingerprint: str
    bgr: bool = False
    crop: float = 1.0
    white: int = 65_535
    framing: "Framing | None" = None
    originals: dict[int, Path] = field(default_factory=dict)
    unlabelled: Pixels | None = None

    @property
    def calibration(self) -> Split:
        """The images on which ranges are chosen; those that were given have labels of 0."""
        if self.unlabelled is not None:
            return Split(images=self.unlabelled, labels=np.zeros(len(self.unlabelled), np.int64))
        return self.train if len(self.train) else self.val

    @property
    def calibration_source(self) -> str:
        """Which images those are."""
        if self.unlabelled is not None:
            return "images of dataset.calibration"
        return USUAL_CALIBRATION if len(self.train) else "images held out from the test images"

    @property
    def probe_images(self) -> Pixels:
        """Images that layers are looked at on, none of those that accuracy is measured on."""
        return self.val.images if len(self.val) else self.calibration.images

    @property
    def recorded(self) -> Array:
        """Numbers of the test images that a bundle holds, at most 16 from all over, int64 [N]."""
        return np.unique(np.linspace(0, len(self.test) - 1, 16).astype(np.int64))


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One line of a training history. Losses are means over images; accuracies are shares in [0, 1]."""

    epoch: int
    train_loss: float
    val_loss: float
    val_top1: float
    lr: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A baseline on disk: the checkpoint with the lowest validation loss.

    Attributes:
        checkpoint: state_dict file.
        val_top1: None where there are no validation images.
        test_logits_NK: float32 logits of the test images, computed by PyTorch in fp32.
        validation_right_N: which validation images it classifies right, bool [N].
        notes: what is to be told of the network, a line each.
    """

    checkpoint: Path
    history: tuple[Epoch, ...]
    best_epoch: int
    val_top1: float | None
    device: str
    test_logits_NK: Array
    validation_right_N: Array
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """What was done to one layer, truthfully.

    Attributes:
        name: module path in the original network.
        kind: ``conv2d`` or ``linear``.
        weights, activations: the formats really applied, e.g. ``s7 per-channel symmetric``, ``float32``.
        parameters: number of weights and biases.
        stored_bits: bits that these need as stored, scales included.
        sqnr_db: signal-to-quantization-noise ratio of the weights, None where they are unchanged.
        weight_range, activation_range: the values of the smallest and the largest code, of the channel where they are
            widest; None in float, and of weights where the layer became several.
        weight_clipped, activation_clipped: shares in [0, 1] of the float network's weights, and of the values that the
            layer reads on calibration images, that lie beyond; None in float.
        became: the layers that took its place, in the order in which they run; empty when it is still one.
        reason: why less was done to the layer than was asked, for instance nothing at all; empty when it was not less.
        remedy: what the guard did to keep it from ruining the network, why, and at what price; empty when nothing.
    """

    name: str
    kind: str
    weights: str
    activations: str
    parameters: int
    stored_bits: int
    sqnr_db: float | None = None
    weight_range: tuple[float, float] | None = None
    weight_clipped: float | None = None
    activation_range: tuple[float, float] | None = None
    activation_clipped: float | None = None
    became: str = ""
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """How values are spread.

    Attributes:
        low, high: the least and the largest.
        counts: of a sample of them, in bins of equal width between the two.
    """

    low: float
    high: float
    mean: float
    std: float
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LayerStats:
    """Statistics of a layer on a few validation images, before and after the network was compressed.

    Attributes:
        name: the same as in its record.
        weights: how its weights are spread in the float network.
        inputs: how its inputs are spread there.
        input_sqnr_db: signal-to-noise ratio of its inputs in the compressed network, None where they are the same or
            not finite.
        maps_2CHW: some channels of its input for one image, in the float and in the compressed network; None
            where it is not shown, or has no channels.
    """

    name: str
    weights: Distribution
    inputs: Distribution
    input_sqnr_db: float | None = None
    maps_2CHW: Array | None = None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Values recorded while a network was compressed, at steps 0, 1 and so on.

    Attributes:
        name: what went, a metric of MLflow with steps, e.g. ``val_loss`` or ``relative_error.classifier.1``.
        step: what a step is, e.g. ``epoch``.
    """

    name: str
    values: tuple[float, ...]
    step: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table that a method recorded about the network that it compressed.

    Attributes:
        name: of the file, e.g. ``sensitivity``.
        columns: the first names the rows.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]

    @classmethod
    def from_json(cls, table: dict[str, Any]) -> "Table":
        """The table that its fields were written of as JSON, which knows no tuples."""
        return cls(name=table["name"], columns=tuple(table["columns"]), rows=tuple(map(tuple, table["rows"])))


@dataclass(frozen=True, kw_only=True)
class Compression:
    """What a method returns: a program from float32 images [N, C, H, W] to float32 logits [N, K], and its records.

    Attributes:
        normalized: of an uncompressed program, the paths of the weights that a normalisation was folded into.
        given: ONNX file that engines get instead of the program; None for none.
    """

    program: "torch.export.ExportedProgram"
    layers: tuple[LayerRecord, ...]
    curves: tuple[Curve, ...] = ()
    tables: tuple[Table, ...] = ()
    normalized: tuple[str, ...] = ()
    given: "onnx.ModelProto | None" = None


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """A compression on disk.

    Attributes:
        program: ``torch.export`` file of the Q/DQ (or float) program.
        layer_stats: statistics of the layers that are in the float network as well.
        calibrated_on: number of calibration images that the method watched.
        given: ONNX file that engines get instead of the program; None for none.
        normalized: as of a ``Compression``.
        reference_N: indices, int64 [N], of the test images that the reference was run on, in rising order.
        reference_NK: float32 logits of these images by the reference, that is the program op by op in PyTorch.
    """

    program: Path
    layers: tuple[LayerRecord, ...]
    curves: tuple[Curve, ...]
    tables: tuple[Table, ...]
    layer_stats: tuple[LayerStats, ...]
    reference_N: Array
    reference_NK: Array
    calibrated_on: int = 0
    given: Path | None = None
    normalized: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OpProfile:
    """One operation as an engine executed it.

    Attributes:
        name: node name in the engine's graph.
        op: the engine's name of the kernel, e.g. ``QLinearConv``.
        macs: multiply-accumulates for one batch; 0 for operations without weights.
        integer: whether they were done on integers.
        ms: milliseconds that it took, the median of a few runs; 0 where the engine does not report it.
    """

    name: str
    op: str
    macs: int
    integer: bool
    ms: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RaceTime:
    """How an artifact did in a race of several.

    Attributes:
        p50_ms, low_ms, high_ms: median latency and its interval.
        times: how many times as long it took as the winner, 1 for that one, with its interval.
        noisy: whether the machine was.
        crowded: whether others used the cores, so that the times say little.
    """

    p50_ms: float
    low_ms: float
    high_ms: float
    times: float
    times_low: float
    times_high: float
    noisy: bool = False
    crowded: bool = False


#: ``lowered``: compressed and made into the engine's file, which cannot be run here, or whose target was away.
Status = Literal["finished", "lowered", "failed"]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Everything measured on one artifact.

    Attributes:
        metrics: by the names of ``docs/measurement.md``; full precision, units in the names.
        flags: what a reader must know before believing a figure, e.g. ``noisy``.
        verdict: ``faster``, ``slower`` or ``not distinguishable`` than the same backend's fp32; empty where not timed.
        findings: sentences that explain the figures, e.g. why the artifact is not faster than fp32.
        details: as JSON types: kernels, noise probes, size by layer.
        tables: what was found out layer by layer.
        folder: raw latency samples and predictions.
    """

    metrics: dict[str, float]
    flags: tuple[str, ...]
    verdict: str
    findings: tuple[str, ...]
    details: dict[str, Any]
    tables: tuple[Table, ...]
    folder: Path

    @property
    def logits(self) -> Path | None:
        """Those of the test images, ``.npy``; None where nothing was run."""
        file = self.folder / "logits.npy"
        return file if file.exists() else None

    @property
    def latency_samples(self) -> Path | None:
        """Raw latencies, ``.npz``; None where nothing was timed."""
        file = self.folder / LATENCY_SAMPLES
        return file if file.exists() else None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What figures are believed by, on disk.

    Attributes:
        folder: the files, as MLflow gets them; None where there are none at all.
        missing: files that could not be made -> why; the next start makes them anew.
    """

    folder: Path | None
    missing: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return "; ".join(f"{name} is missing ({why})" for name, why in self.missing.items())


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a cell ended. ``reason`` is empty for a finished cell; ``log_tail`` holds the end of a failed one's log.

    The measurement of a lowered cell holds what its files say: size and kernels, no accuracy and no latency. Where its
    target was away it has none, and the same command goes on. A failed cell is ``lost`` where its job ended without an
    answer.
    """

    status: Status
    reason: str = ""
    log_tail: str = ""
    measurement: Measurement | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    run_id: str = ""
    lost: bool = False
