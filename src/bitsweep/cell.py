"""One cell of the grid: what it is made of, and why it cannot run (if so)."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bitsweep.config.augmentation import MOVES
from bitsweep.config.backend import Backend
from bitsweep.config.binding import CONFIG_GROUPS, REQUIRE, construct
from bitsweep.config.configurable import IN_NAMES, asked_once, marked, source_of
from bitsweep.config.dataset import Dataset
from bitsweep.config.file_model import FileModel
from bitsweep.config.method import Method
from bitsweep.config.model import Model
from bitsweep.config.overrides import as_word
from bitsweep.config.precision import Precision, Scheme
from bitsweep.config.protocol import MeasurementProtocol
from bitsweep.config.recipe import Recipe
from bitsweep.config.requirement import NOTHING, Requirements
from bitsweep.config.target import Target
from bitsweep.errors import ConfigError, MissingPackage, UsageError
from bitsweep.methods.none import NoCompression
from bitsweep.runtime.environment import current_gpu, version_of
from bitsweep.runtime.gpu import no_gpu_for_pytorch

FP32 = Precision(name="fp32", weights="float32", activations="float32")

#: Config groups whose choices make up the name of a cell.
NAMED = ("model", "method", "precision", "backend", "dataset")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of the grid.

    Attributes:
        knobs: names and values of what was set besides the choices; distinguishes cells in tables.
        command: what makes this cell alone.
        require: what it must keep to be deployed.
        keys: stage -> key, once `bitsweep.stages` has found it.

    Knobs and command say of a cell what its choices hold already, and requirements judge it: no key contains them.
    """

    model: Model
    method: Method
    precision: Precision
    backend: Backend
    dataset: Dataset
    train: Recipe
    protocol: MeasurementProtocol
    target: Target
    seed: int
    knobs: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    command: str = field(default="", compare=False)
    require: Requirements = field(default=NOTHING, compare=False)
    keys: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def choices(self) -> dict[str, str]:
        """Config group -> name of its choice, and every knob that was set, as MLflow parameters."""
        named = {group: getattr(self, group).name for group in CONFIG_GROUPS}
        return named | {"seed": str(self.seed)} | dict(self.knobs)

    def setting(self, knob: str) -> str:
        """The value of a knob, set or not, e.g. of ``method.percentile``, as a word; empty where there is no such."""
        found: Any = self
        for name in knob.split("."):
            known = found if isinstance(found, Mapping) else getattr(found, "__dict__", {})
            if name not in known:
                return ""
            found = known[name]
        return as_word(found)

    @property
    def shown_knobs(self) -> tuple[str, ...]:
        """Knobs that were set and that names show, e.g. ``backend.device``."""
        shown = {f"{group}.{knob}" for group in CONFIG_GROUPS for knob in marked(getattr(self, group), IN_NAMES)}
        return tuple(name for name, _ in self.knobs if name in shown)

    @property
    def name(self) -> str:
        """A short readable name, not necessarily unique: of the knobs it has those alone that names show."""
        knobs = dict(self.knobs)
        parts = []
        for group in NAMED:
            parts += [
                getattr(self, group).name,
                *(knobs[name] for name in self.shown_knobs if name.startswith(f"{group}.")),
            ]
        parts += [] if self.target.here else [self.target.name]
        return "-".join([*parts, f"s{self.seed}"] if self.seed else parts)

    @property
    def packages(self) -> tuple[str, ...]:
        """Distributions that its network, its method and its engine come in."""
        return self.model.package, self.method.package, self.backend.package

    @property
    def baseline_name(self) -> str:
        """The same of its baseline."""
        return f"baseline {self.model.name} {self.dataset.name}"

    @property
    def device(self) -> str:
        """Model of the processor that its engine runs on; empty where that is a GPU and there is none."""
        processor = current_gpu() if self.backend.on_gpu else self.target.cpu
        return processor.model if processor else ""

    @functools.cached_property
    def twin(self) -> "Cell":
        """The uncompressed cell on the same engine, which this one is timed against; itself if it is that one."""
        if self.method.keeps_files and isinstance(self.model, FileModel):
            original = self.model.original
            if original is self.model:
                return self
            return replace(self, model=original, precision=FP32, backend=self.backend.for_floats)
        return self._uncompressed if self._compresses else self

    @property
    def _compresses(self) -> bool:
        return self.precision != FP32 or self.method.compresses_float

    @property
    def _uncompressed(self) -> "Cell":
        plain = replace(self, method=NoCompression(name="none"), precision=FP32, backend=self.backend.for_floats)
        groups = ("method.", "precision.")
        kept = [
            (name, value)
            for name, value in self.knobs
            if not name.startswith(groups) and plain.setting(name) == self.setting(name)
        ]
        return replace(plain, knobs=tuple(kept))

    @functools.cached_property
    def scheme(self) -> Scheme:
        """The precision resolved against backend and the CPU that measures; of a file as it is, what is said of it."""
        weights, activations = self.precision.weights, self.precision.activations
        if self.method.hands_over_files and self.precision.is_integer:
            return Scheme(weights=weights, activations=activations, arithmetic="integer")
        return self.backend.scheme(self.precision, self.target.cpu)

    def cannot_run(self) -> str | None:
        """Why its files can be made and not run; None when they can."""
        return self.backend.cannot_run() if self.target.here else None

    def cannot_train(self) -> str | None:
        """Why its baseline cannot be trained on this machine; None when it can."""
        if self.train.device != "cuda" or not self.train.epochs:
            return None
        return no_gpu_for_pytorch(asked="train.device=cuda", instead="train.device=auto or cpu")

    def skip_reason(self) -> str | None:
        """Why this cell cannot run, with the hint; None when it can."""
        if not self.target.here and (reason := self._not_for_elsewhere()):
            return reason
        if (cpus := self.target.cpus) is not None and self.protocol.threads > cpus:
            return (
                f"protocol.threads={self.protocol.threads}: there are {cpus} CPUs; give no more, or 0 for as many as "
                "there are physical cores"
            )
        # Packages come second: none of them makes up for a GPU, or for kernels.
        if reason := self.backend.unsupported(self.precision):
            return reason
        for choice in (self.model, self.method, self.backend):
            if version_of(choice.package) == "absent":
                return str(MissingPackage(choice.package, choice.extra))
        if reason := self.method.unsupported(self.precision):
            return reason
        resolved = replace(self.precision, weights=self.scheme.weights, activations=self.scheme.activations)
        if self.scheme.arithmetic == "integer" and self.method.unsupported(resolved):
            return f"{self.scheme.why}, and method={self.method.name} has no such: choose another method or backend"
        if isinstance(self.model, FileModel) and self.train.epochs:
            return f"model={self.model.name} is taken as its file has it: use train=pretrained, not {self.train.name}"
        if self.train.epochs == 0 and not (self.model.weights or isinstance(self.model, FileModel)):
            return f"train={self.train.name} does not train: set model.weights to a state_dict, or train.epochs"
        if self.train.frozen_epochs and not self.model.weights:
            return (
                f"train.frozen_epochs={self.train.frozen_epochs} freezes random weights: set model.weights=imagenet or "
                "to a state_dict, or train.frozen_epochs=0"
            )
        if str(self.model.output) not in ("", "0") and not self.model.has_outputs:
            return f"model.output={self.model.output}: model={self.model.name} yields its logits alone; leave it out"
        try:
            self.model.check()
            self._check_augmentation()
            if reason := self._file_reason():
                return reason
            for group in CONFIG_GROUPS:
                source_of(getattr(self, group))
            return self._missing_images()
        except UsageError as error:
            return str(error)

    def _check_augmentation(self) -> None:
        """Whether there are the transforms of training images that were named, which takes torchvision to say."""
        for group in ("train", "method"):
            steps = getattr(getattr(self, group), "augment", ())
            if any(name not in MOVES for step in steps for name in step):
                from bitsweep.training.augmentation import check

                channels, *image_size = self.model.input_shape
                check(steps, channels=channels, image_size=tuple(image_size), key=f"{group}.augment")

    def _not_for_elsewhere(self) -> str | None:
        """Why its artifact runs on this machine alone; None where it does not."""
        asked = f"backend={self.backend.name}"
        if self.backend.on_gpu:
            return f"target={self.target.name} measures on a CPU: use backend.device=cpu"
        if not self.backend.deploy_needs or not self.backend.portable:
            return f"{asked} runs on this machine alone: use backend=onnxruntime or openvino, or target=local"
        return None

    def _missing_images(self) -> str | None:
        """Why what learns has nothing to learn from; None where it has."""
        learns = self.method.learns_from()
        if not self.train.epochs and not learns:
            return None
        lacking = asked_once(self.dataset, "lacks", self.dataset.lacks)
        if self.train.epochs and "training" in lacking:
            return f"{lacking['training']}; train={self.train.name} trains: use train=pretrained and model.weights"
        if learns and learns in lacking:
            return f"{lacking[learns]}; method={self.method.name} needs {learns} images: use another method"
        return None

    def _file_reason(self) -> str | None:
        """Why the file of the network does not go with method, precision or engine, with the hint."""
        model = self.model if isinstance(self.model, FileModel) else None
        if not self.method.keeps_files and model and model.is_quantized:
            return f"model.file={model.file} is quantized already: use method=as_is, or give the float file"
        if self.method.keeps_files and not (model and model.is_onnx):
            return f"method={self.method.name} measures an ONNX file as it is: use model=onnx model.file=FILE"
        if self.method.hands_over_files and not self.backend.reads_onnx:
            return f"backend={self.backend.name} takes no ONNX files as they are: use backend=onnxruntime or openvino"
        if model is None or not self.method.keeps_files:
            return None
        if model.is_quantized and not self.precision.is_integer:
            return f"model.file={model.file} is quantized: use precision=int8, not {self.precision.name}"
        if not model.is_quantized and self.precision != FP32:
            return f"model.file={model.file} is float: use precision=fp32, or a method that compresses"
        return None


def bind(config: Mapping[str, Any], *, knobs: tuple[tuple[str, str], ...] = (), command: str = "") -> Cell:
    """Turn a composed configuration into a cell, checking every value.

    Args:
        config: group -> mapping with ``_target_`` and the knobs of that class, that of requirements too, and ``seed``.
        knobs, command: see ``Cell``.

    Raises:
        ConfigError: naming key, value and what is allowed.
    """
    choices: dict[str, Any] = {group: construct(group, config[group], kind) for group, kind in CONFIG_GROUPS.items()}
    seed = config["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed={seed}: give a whole number from 0 to 4294967295")
    require = construct(REQUIRE, config[REQUIRE], Requirements)
    cell = Cell(**choices, seed=seed, knobs=knobs, command=command, require=require)
    # All uncompressed cells of one model and engine are the same cell, whatever method was asked for.
    return cell if cell._compresses or cell.method.keeps_files else cell._uncompressed
