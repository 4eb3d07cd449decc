"""The nouns one configures: every config group of ``conf/`` is one class here, and every YAML one instance.

A plug-in is a final, frozen dataclass that extends one of the abstract classes below. Its fields are its knobs; they
are type- and range-checked when it is constructed. Constructing is pure: files, packages and devices are touched in
methods only.

Shape letters: N images, K classes, C channels, H height, W width.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, dataclass_transform

import pydantic
from pydantic import ConfigDict, Field

from bitsweep.environment import Cpu, Gpu, current_gpu, version_of
from bitsweep.errors import ConfigError, MissingPackage

if TYPE_CHECKING:
    import numpy as np
    import torch

    from bitsweep.artifacts import Compression, Kernel, RawData, Splits

T = TypeVar("T")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def axis(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass whose fields are checked on construction; unknown fields are refused."""
    config = ConfigDict(extra="forbid", allow_inf_nan=False)
    checked: type[T] = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=config)(cls)  # type: ignore[assignment]
    return checked


# --------------------------------------------------------------------------- what is compressed, on what


@axis
class Model(ABC):
    """A network architecture.

    Attributes:
        name: short stable name, used in tables.
        image_size: height and width of its input, in pixels.
        weights: what to start from: ``imagenet``, the published weights of this network; the path of a state_dict file;
            empty for random weights. A head for other classes than those of the data set is replaced.
        normalization: of the pixels: by mean and deviation of the training images (``dataset``) or of ImageNet's
            (``imagenet``); to about -1 to 1 (``centred``: (x - 127) / 128 for x from 0 to 255); or ``auto``, what
            ``weights=imagenet`` was trained with, otherwise ``dataset``.
        head: ``linear``, the network's own last layer; ``mlp``, linear layers of 512 and 128 outputs with ReLU and
            dropout in front of one for the classes.
        package, extra: distribution that the network comes in, and the extra of this project that installs it.
        weights_package, weights_extra: the same for the weights named ``imagenet``; empty where there are none.
    """

    name: Name
    image_size: Count
    weights: str = ""
    normalization: Literal["auto", "dataset", "imagenet", "centred"] = "auto"
    head: Literal["linear", "mlp"] = "linear"
    package: ClassVar[str] = "torch"
    extra: ClassVar[str] = ""
    weights_package: ClassVar[str] = ""
    weights_extra: ClassVar[str] = ""

    @abstractmethod
    def build(self, num_classes: int) -> "torch.nn.Module":
        """A freshly initialised network that maps float images [N, 3, H, W] to logits [N, num_classes]."""

    def imagenet_state(self) -> "dict[str, torch.Tensor]":
        """The state_dict that ``weights=imagenet`` means, with a head for ImageNet's 1,000 classes.

        Raises:
            ConfigError: they cannot be downloaded.
        """
        raise AssertionError(f"{type(self).__name__} has no ImageNet weights, see weights_source")

    def imagenet_pixels(self) -> Literal["imagenet", "centred"]:
        """The normalisation that ``weights=imagenet`` was trained with.

        Raises:
            ConfigError: it is another one than there are.
        """
        return "imagenet"

    def weights_source(self) -> str:
        """A fingerprint of the weights, the same before and after a download; empty for random ones.

        Raises:
            ConfigError: there is no such file, or there are no weights of that name.
            MissingPackage: what they come in is not installed.
        """
        if not self.weights:
            return ""
        if self.weights == "imagenet":
            if not self.weights_package:
                raise ConfigError(
                    f"model.weights=imagenet: there are none for {self.name}; give the path of a state_dict, or train "
                    "from scratch with model.weights=''"
                )
            if (version := version_of(self.weights_package)) == "absent":
                raise MissingPackage(self.weights_package, self.weights_extra)
            return f"imagenet of {self.weights_package} {version}"
        file = Path(self.weights).expanduser()
        if not file.is_file():
            raise ConfigError(
                f"model.weights={self.weights}: no such file; give the path of a state_dict, or model.weights=imagenet"
            )
        return hashlib.sha256(file.read_bytes()).hexdigest()

    @property
    def pixels(self) -> Literal["dataset", "imagenet", "centred"]:
        """The normalisation of the pixels, decided."""
        if self.normalization == "auto":
            return self.imagenet_pixels() if self.weights == "imagenet" else "dataset"
        return self.normalization


@axis
class Dataset(ABC):
    """Labelled images.

    Attributes:
        name: short stable name, used in tables.
        val_share: part of the training images held out for choosing the checkpoint.
        split_seed: seed of that choice; apart from the cell's seed, so that all seeds see the same images.
    """

    name: Name
    val_share: Share = 0.1
    split_seed: int = 0

    @abstractmethod
    def source(self) -> str:
        """A fingerprint of the raw files without decoding them, the same before and after a download.

        Raises:
            DataError: the files are neither here nor to be downloaded.
        """

    @abstractmethod
    def decode(self) -> "RawData":
        """Read (or first download) the raw files.

        Raises:
            DataError: a file is missing, unreadable or truncated.
        """


@axis
class Recipe:
    """How a baseline is trained (config group ``train``).

    Attributes:
        epochs: passes over the training images, at most; 0 takes ``model.weights`` as they are.
        max_steps: optimiser steps, at most; bounds the time on large data sets.
        batch_size: images a step.
        optimizer: ``adamw`` (decoupled weight decay) or ``sgd`` (Nesterov momentum 0.9).
        lr: peak learning rate.
        weight_decay: decoupled for AdamW; not applied to biases and normalisation.
        backbone_lr_factor: learning rate of all but the head, relative to the head's.
        frozen_epochs: first epochs in which only the head is trained; as many as ``epochs`` for throughout.
        schedule: after a linear warm-up ``cosine``, or ``plateau``, which is lowered whenever the validation loss has
            stopped falling; ``onecycle``, whose warm-up is a cosine too.
        warmup_share: part of the steps spent warming up.
        plateau_patience: epochs without a lower validation loss before the learning rate is lowered.
        plateau_factor: by which it is multiplied then.
        label_smoothing: of the cross entropy.
        augment: ``none``; ``shift`` (random translation by up to an eighth); ``shift_flip`` (and mirroring).
        clip_norm: largest norm of the gradient; 0 turns clipping off.
        bn_momentum: share of a batch in BatchNorm's running statistics; networks that were made for long trainings
            bring one so small that the statistics are still near their start after a short one. 0 keeps those of given
            weights, and normalises by them in training too: few images make worse ones.
        ema_decay: of an exponential average of the weights, which takes their place in validation and in the end; 0
            turns averaging off.
        patience: epochs without a lower validation loss before stopping early.
        device: where to train; ``auto`` takes a GPU when there is one.
        devices: GPUs, or processes on the CPU, that share every batch; what is learned is the same but for rounding
            and dropout.
        autocast: half-precision type of the arithmetic; ``auto`` is bfloat16 on a GPU that computes it, else none.
        compile: whether PyTorch compiles the network, which takes a minute and pays on a GPU; ``auto`` does it there.
    """

    name: Name
    epochs: Annotated[int, Field(ge=0)]
    max_steps: Count
    batch_size: Annotated[int, Field(ge=2)] = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    backbone_lr_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    frozen_epochs: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["cosine", "onecycle", "plateau"] = "cosine"
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    plateau_patience: Count = 2
    plateau_factor: Share = 0.2
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    augment: Literal["none", "shift", "shift_flip"] = "shift"
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    bn_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.1
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    patience: Count = 10
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Count = 1
    autocast: Literal["auto", "none", "float16", "bfloat16"] = "none"
    compile: Literal["auto", "always", "never"] = "never"

    def __post_init__(self) -> None:
        if self.batch_size % self.devices:
            raise ValueError(f"devices={self.devices}: must divide batch_size={self.batch_size}")


# --------------------------------------------------------------------------- to how many bits

FloatFormat = Literal["float32", "float16", "bfloat16"]


@axis
class Grid:
    """The integer grid of a tensor: which codes there are, and what shares a scale.

    Attributes:
        bits: width of a code.
        signed: two's complement codes, or codes from zero.
        symmetric: zero point 0 (signed); one code fewer, so that the range is symmetric too.
        per_channel: one scale for each output channel, or one for the tensor.
        levels: number of codes of a symmetric grid that uses fewer than its bits offer, odd; 0 for all of them.
    """

    bits: Annotated[int, Field(ge=2, le=16)]
    signed: bool
    symmetric: bool
    per_channel: bool = False
    levels: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        if self.levels and not (self.symmetric and self.levels % 2 and 3 <= self.levels < 1 << self.bits):
            raise ValueError(f"levels={self.levels} should be odd and at least 3, on a symmetric grid with room for it")

    @property
    def lo(self) -> int:
        """Smallest code."""
        if not self.signed:
            return 0
        if self.levels:
            return -(self.levels // 2)
        return -(1 << (self.bits - 1)) + (1 if self.symmetric else 0)

    @property
    def hi(self) -> int:
        """Largest code."""
        if self.levels:
            return self.levels // 2
        return (1 << (self.bits - 1 if self.signed else self.bits)) - 1

    def __str__(self) -> str:
        sign = "s" if self.signed else "u"
        granularity = "per-channel" if self.per_channel else "per-tensor"
        levels = f", {self.levels} levels" if self.levels else ""
        return f"{sign}{self.bits} {granularity} {'symmetric' if self.symmetric else 'affine'}{levels}"


@axis
class Precision:
    """Number formats of weights and activations: not how ranges are chosen (method) or which kernels run (backend)."""

    name: Name
    weights: Grid | FloatFormat
    activations: Grid | FloatFormat

    @property
    def is_integer(self) -> bool:
        """Whether weights are integer codes."""
        return isinstance(self.weights, Grid)


@axis
class Scheme:
    """A precision resolved against what a backend's kernels take and what the CPU computes; part of the compressed key.

    Attributes:
        weights, activations: the formats that are really used.
        arithmetic: what multiplications are done in.
        why: in what the scheme differs from the precision asked for, and for what reason; empty when it does not.
    """

    weights: Grid | FloatFormat
    activations: Grid | FloatFormat
    arithmetic: Literal["float32", "float16", "bfloat16", "integer", "simulated"]
    why: str = ""

    def __str__(self) -> str:
        return f"weights {self.weights}, activations {self.activations}, {self.arithmetic} arithmetic"


FLOAT32 = Scheme(weights="float32", activations="float32", arithmetic="float32")


# --------------------------------------------------------------------------- how, and on which engine


@axis
class Method(ABC):
    """A way to make a trained network smaller: chooses ranges and codes, and yields a Q/DQ program.

    Attributes:
        compresses_float: whether it changes a network that stays in fp32.
    """

    name: Name
    compresses_float: ClassVar[bool] = False

    @abstractmethod
    def unsupported(self, precision: Precision) -> str | None:
        """Why this method cannot express a precision, with the cure; None when it can."""

    @abstractmethod
    def compress(
        self, model: "torch.nn.Module", splits: "Splits", *, image_size: int, scheme: Scheme, seed: int
    ) -> "Compression":
        """Compress a trained network in evaluation mode, which may be changed in place.

        Returns:
            The exported program with a dynamic batch, float32 images [N, 3, H, W] to float32 logits [N, K],
            and a note on each layer.

        Raises:
            BitsweepError: the network cannot be compressed, for instance because a weight is not finite.
        """


#: What an engine that has kernels for both runs on.
Device = Literal["cpu", "cuda"]
#: Runs an artifact: float32 images [N, 3, H, W] to float32 logits [N, K].
Runner = Callable[["np.ndarray[Any, Any]"], "np.ndarray[Any, Any]"]


@dataclass(frozen=True, kw_only=True)
class OnDevice:
    """A run of a batch that lies in a GPU's memory, and whose logits stay there.

    Attributes:
        queue: lets the GPU run it; may return before it is done.
        stream: handle of the CUDA stream that it runs in.
    """

    queue: Callable[[], object]
    stream: int


@axis
class Backend(ABC):
    """An engine. Lowers a program to a file, and runs that file.

    Attributes:
        package, extra: distribution that the engine comes in, and the extra of this project that installs it.
        timed: whether its latency means anything; False for simulations.
        portable: whether an artifact runs on other CPUs too; False for machine code.
        runner, runner_needs: program of ``runners/`` that runs the artifact without this project, and the packages that
            it imports; empty where there is nothing to deploy.
    """

    name: Name
    package: ClassVar[str] = "torch"
    extra: ClassVar[str] = ""
    timed: ClassVar[bool] = True
    portable: ClassVar[bool] = True
    runner: ClassVar[str] = ""
    runner_needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def unsupported(self, precision: Precision) -> str | None:
        """Why this engine cannot run a precision, with the cure; None when it can."""

    def cannot_run(self) -> str | None:
        """Why this engine's files cannot be run on this machine, although they can be made here; None when they can."""
        return None

    @property
    def on_gpu(self) -> bool:
        """Whether its kernels are an NVIDIA GPU's."""
        return False

    @abstractmethod
    def scheme(self, precision: Precision, cpu: Cpu) -> Scheme:
        """The precision resolved against this engine's kernels and the CPU, or the GPU where it runs on that."""

    @abstractmethod
    def lower(self, program: "torch.export.ExportedProgram", folder: Path) -> None:
        """Write the artifact's files into an existing empty folder.

        Raises:
            BitsweepError: the engine does not take the program.
        """

    @abstractmethod
    def load(self, folder: Path, *, threads: int) -> Runner:
        """Load an artifact in a fresh process, to run on the given number of threads."""

    def load_on_device(self, folder: Path, images: "np.ndarray[Any, Any]", *, threads: int) -> OnDevice:
        """Load an artifact and a batch into the GPU's memory."""
        raise AssertionError(f"{self.name} runs on no GPU, see on_gpu")

    @abstractmethod
    def kernels(self, folder: Path, images: "np.ndarray[Any, Any]", *, threads: int) -> "Sequence[Kernel]":
        """What the engine executed for one batch: its kernels with their multiply-accumulates and arithmetic.

        Of an engine that cannot run here, what it would execute, as its file tells.
        """


@axis
class CpuOrGpu(Backend):
    """An engine with kernels for both.

    Attributes:
        device: ``cpu``, or ``cuda`` for the first NVIDIA GPU.
        tf32: whether float32 layers may round what they multiply to 10 bits of mantissa, which GPUs only do.
    """

    device: Device = "cpu"
    tf32: bool = False

    def __post_init__(self) -> None:
        if self.tf32 and not self.on_gpu:
            raise ValueError(f"tf32=true: there is no such arithmetic on device={self.device}; use device=cuda")

    @property
    def on_gpu(self) -> bool:
        """By choice."""
        return self.device == "cuda"

    def processor(self, cpu: Cpu) -> Cpu | Gpu:
        """What it computes on; there is a GPU where `unsupported` found nothing against it."""
        if not self.on_gpu:
            return cpu
        gpu = current_gpu()
        assert gpu is not None
        return gpu


# --------------------------------------------------------------------------- how it is measured


@axis
class Protocol:
    """How an artifact is measured.

    Attributes:
        threads: intra-op threads of the engine and CPUs it may run on; 0 takes the physical cores.
        batch_sizes: the first is the one that latency metrics without a suffix mean.
        warmup_s: seconds of warm-up for each artifact and batch size.
        blocks: timed blocks of each artifact, interleaved A B B A; a pair of blocks gives one paired ratio.
        block_s: least seconds a block lasts.
        confidence: of all intervals.
        max_drift: largest relative change of a fixed reference kernel from before to after; above it the run is noisy.
        max_spread: largest interquartile range of the latency relative to its median; above it the run is noisy.
        max_foreign_share: largest part of the CPUs' time that other processes may take; above it the run is noisy.
        repeats: how often a noisy run is repeated at most.
        eval_batch: images a batch when measuring accuracy.
        memory: whether to measure peak memory in a pass of its own.
    """

    name: Name
    threads: Annotated[int, Field(ge=0)] = 0
    batch_sizes: Annotated[tuple[Count, ...], Field(min_length=1)] = (1,)
    warmup_s: Annotated[float, Field(ge=0)] = 0.3
    blocks: Annotated[int, Field(ge=6)] = 20
    block_s: Annotated[float, Field(gt=0)] = 0.05
    confidence: Share = 0.95
    max_drift: Annotated[float, Field(gt=0)] = 0.15
    max_spread: Annotated[float, Field(gt=0)] = 0.25
    max_foreign_share: Annotated[float, Field(gt=0)] = 0.15
    repeats: Annotated[int, Field(ge=0)] = 2
    eval_batch: Count = 64
    memory: bool = True
