"""One cell of the grid: what it is made of, the keys of everything it needs, and why it cannot run (if so)."""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bitsweep.config.backend import Backend
from bitsweep.config.binding import CONFIG_GROUPS, construct
from bitsweep.config.dataset import Dataset
from bitsweep.config.method import Method
from bitsweep.config.model import Model
from bitsweep.config.precision import Precision, Scheme
from bitsweep.config.protocol import MeasurementProtocol
from bitsweep.config.recipe import Recipe
from bitsweep.errors import ConfigError, MissingPackage, UsageError
from bitsweep.methods.none import NoCompression
from bitsweep.runtime import fingerprint
from bitsweep.runtime.environment import current_cpu, current_gpu, physical_cores, version_of

FP32 = Precision(name="fp32", weights="float32", activations="float32")

#: Knobs of data sets that say where files lie, and not what is in them.
PLACES = ("root", "folder")
#: The modules whose code makes a measurement what it is, with all that they import.
_PASSES = ("bitsweep.measuring.accuracy", "bitsweep.measuring.latency", "bitsweep.measuring.memory")
#: Choices that make up the name of a cell.
NAMED = ("model", "method", "precision", "backend", "backend.device", "dataset")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of the grid.

    Attributes:
        knobs: names and values of what was set besides the choices; tells cells apart in tables.
        command: what makes this cell alone.

    Knobs and command say of a cell what its choices hold already: no key contains them.
    """

    model: Model
    method: Method
    precision: Precision
    backend: Backend
    dataset: Dataset
    train: Recipe
    protocol: MeasurementProtocol
    seed: int
    knobs: tuple[tuple[str, str], ...] = dataclasses.field(default=(), compare=False)
    command: str = dataclasses.field(default="", compare=False)

    @property
    def choices(self) -> dict[str, str]:
        """Config group -> name of its choice, and every knob that was set, as MLflow parameters."""
        named = {group: getattr(self, group).name for group in CONFIG_GROUPS}
        return named | {"seed": str(self.seed)} | dict(self.knobs)

    @property
    def name(self) -> str:
        """A short readable name, not necessarily unique: it leaves out the knobs, but for a device that was chosen."""
        choices = self.choices
        parts = [choices[name] for name in NAMED if name in choices]
        return "-".join([*parts, f"s{self.seed}"] if self.seed else parts)

    @property
    def device(self) -> str:
        """Model of the processor that its engine runs on; empty where that is a GPU and there is none."""
        processor = current_gpu() if self.backend.on_gpu else current_cpu()
        return processor.model if processor else ""

    @property
    def twin(self) -> "Cell":
        """The uncompressed cell on the same engine, which this one is timed against; itself if it is that one."""
        return self._uncompressed if self._compresses else self

    @property
    def _compresses(self) -> bool:
        return self.precision != FP32 or self.method.compresses_float

    @property
    def _uncompressed(self) -> "Cell":
        kept = tuple(knob for knob in self.knobs if not knob[0].startswith(("method.", "precision.")))
        return replace(self, method=NoCompression(name="none"), precision=FP32, knobs=kept)

    @functools.cached_property
    def scheme(self) -> Scheme:
        """The precision resolved against backend and CPU."""
        return self.backend.scheme(self.precision, current_cpu())

    @functools.cached_property
    def dataset_key(self) -> str:
        """Key of the decoded and split data."""
        return _dataset_key(self.dataset)

    @functools.cached_property
    def baseline_key(self) -> str:
        """Key of the trained fp32 model."""
        return fingerprint.digest(
            "baseline", self.dataset_key, fingerprint.settings(replace(self.model, weights=_weights(self.model))),
            fingerprint.settings(self.train), self.seed,
            fingerprint.code("bitsweep.training.baseline", type(self.model).__module__),
            _versions("torch", "torchvision", self.model.package),
        )  # fmt: skip

    @functools.cached_property
    def compressed_key(self) -> str:
        """Key of the Q/DQ or float program; backends with the same scheme share it."""
        return fingerprint.digest(
            "compressed", self.baseline_key, "" if self.twin is self else self.twin.compressed_key,
            fingerprint.settings(self.method), fingerprint.settings(self.scheme),
            fingerprint.code("bitsweep.graphs.program", type(self.method).__module__), _versions("torch", "torchao"),
        )  # fmt: skip

    @functools.cached_property
    def artifact_key(self) -> str:
        """Key of the file that the engine loads."""
        cpu, gpu = current_cpu(), current_gpu() if self.backend.on_gpu else None
        return fingerprint.digest(
            "artifact", self.compressed_key, fingerprint.settings(self.backend),
            fingerprint.code(type(self.backend).__module__), _versions("torch", "onnxscript", self.backend.package),
            [] if self.backend.portable else [cpu.model, cpu.isa, *((gpu.model, gpu.architecture) if gpu else ())],
        )  # fmt: skip

    @functools.cached_property
    def probe_key(self) -> str:
        """Key of what the engine's kernels do with the largest sums: one for each engine, scheme and CPU."""
        cpu = current_cpu()
        return fingerprint.digest(
            "probe", fingerprint.settings(self.backend), fingerprint.settings(self.scheme), [cpu.model, cpu.isa],
            fingerprint.code("bitsweep.measuring.saturation", type(self.backend).__module__),
            _versions("torch", "onnxscript", self.backend.package),
        )  # fmt: skip

    @functools.cached_property
    def key(self) -> str:
        """Key of the measurement: the cell's identity. Figures of unlike machines never share one."""
        cpu, gpu = current_cpu(), current_gpu()
        return fingerprint.digest(
            "cell", self.artifact_key, self.twin.artifact_key, self.probe_key, fingerprint.settings(self.protocol),
            fingerprint.code(*_PASSES), [cpu.model, cpu.isa, physical_cores(), gpu.model if gpu else ""],
        )  # fmt: skip

    def skip_reason(self) -> str | None:
        """Why this cell cannot run here, with the hint; None when it can."""
        # Packages come second: none of them makes up for a GPU, or for kernels.
        if reason := self.backend.unsupported(self.precision):
            return reason
        for choice in (self.model, self.backend):
            if version_of(choice.package) == "absent":
                return str(MissingPackage(choice.package, choice.extra))
        if reason := self.method.unsupported(self.precision):
            return reason
        resolved = replace(self.precision, weights=self.scheme.weights, activations=self.scheme.activations)
        if self.scheme.arithmetic == "integer" and self.method.unsupported(resolved):
            return f"{self.scheme.why}, and method={self.method.name} has no such: choose another method or backend"
        if self.train.epochs == 0 and not self.model.weights:
            return f"train={self.train.name} does not train: set model.weights to a state_dict, or train.epochs"
        if self.train.frozen_epochs and not self.model.weights:
            return (
                f"train.frozen_epochs={self.train.frozen_epochs} freezes random weights: set model.weights=imagenet or "
                "to a state_dict, or train.frozen_epochs=0"
            )
        try:
            _weights(self.model)
            _source(self.dataset)
        except UsageError as error:
            return str(error)
        return None


@functools.cache
def _dataset_key(dataset: Dataset) -> str:
    code = fingerprint.code("bitsweep.data.splits", type(dataset).__module__)
    chosen = {knob: value for knob, value in fingerprint.settings(dataset).items() if knob not in PLACES}
    return fingerprint.digest("dataset", chosen, _source(dataset), code)


@functools.cache
def _source(dataset: Dataset) -> str:
    return dataset.source()


@functools.cache
def _weights(model: Model) -> str:
    return model.weights_source()


def _versions(*packages: str) -> list[tuple[str, str]]:
    return [(package, version_of(package)) for package in packages]


def bind(config: Mapping[str, Any], *, knobs: tuple[tuple[str, str], ...] = (), command: str = "") -> Cell:
    """Turn a composed configuration into a cell, checking every value.

    Args:
        config: group -> mapping with ``_target_`` and the knobs of that class, and ``seed``.
        knobs, command: see ``Cell``.

    Raises:
        ConfigError: naming key, value and what is allowed.
    """
    choices: dict[str, Any] = {group: construct(group, config[group], kind) for group, kind in CONFIG_GROUPS.items()}
    seed = config["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed={seed}: give a whole number from 0 to 4294967295")
    cell = Cell(**choices, seed=seed, knobs=knobs, command=command)
    # All uncompressed cells of one model and engine are the same cell, whatever method was asked for.
    return cell if cell._compresses else cell._uncompressed
