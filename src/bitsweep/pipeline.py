"""The sentence: load the data, train or reuse the baseline, compress it, lower it to an engine, measure what runs.

Each stage is a function of a cell that writes one folder of the store, in a process of its own. A stage that is in the
store already is not run again; its key says whether it is (see `bitsweep.experiment`).
"""

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from bitsweep import child
from bitsweep.artifacts import Compressed, Measurement, Outcome, Splits, Trained
from bitsweep.errors import BitsweepError, StoreError, UsageError
from bitsweep.experiment import Cell
from bitsweep.store import Store

#: Validation images on which layers are looked at.
_VIEWED_IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A step whose result is kept.

    Attributes:
        key: which attribute of a cell is its key.
        passes: functions ``(cell, store, *, folder, progress)`` that fill the folder, each in a process of its own.
        axes: what makes it take longer or shorter, for estimates.
        quiet: whether nothing else of any sweep may compute on this machine meanwhile.
        limited: whether the time and memory limits apply.
        processes: how many do a pass together; where more than one may, its functions take their ``rank``.
    """

    name: str
    key: str
    passes: tuple[Callable[..., None], ...]
    axes: tuple[str, ...]
    quiet: bool = False
    limited: bool = True
    processes: Callable[[Cell], int] = lambda cell: 1

    def key_of(self, cell: Cell) -> str:
        """The key of this stage's result for a cell."""
        return str(getattr(cell, self.key))

    def about(self, cell: Cell) -> dict[str, str]:
        """The choices that make the stage take longer or shorter."""
        return {axis: getattr(cell, axis).name for axis in self.axes}


# --------------------------------------------------------------------------- the stages' work


def load_data(cell: Cell, store: Store, *, folder: Path, progress: TextIO | None) -> None:
    """Decode the data set and split it."""
    from bitsweep.splits import make_splits

    data = cell.dataset
    make_splits(data.decode(), val_share=data.val_share, seed=data.split_seed, folder=folder, progress=progress)


def train_baseline(cell: Cell, store: Store, *, folder: Path, progress: TextIO | None, rank: int = 0) -> None:
    """Train the fp32 baseline, in one process or several."""
    from bitsweep.training.baseline import fit

    unfinished = store.unfinished(BASELINE.name, cell.baseline_key)
    fit(
        cell.model, splits_of(cell, store), recipe=cell.train, seed=cell.seed, folder=folder, rank=rank,
        unfinished=unfinished, progress=progress,
    )  # fmt: skip


def compress(cell: Cell, store: Store, *, folder: Path, progress: TextIO | None) -> None:
    """Compress the baseline to a program, look into it, and run it on the test images: the reference."""
    import numpy as np
    import torch

    from bitsweep.programs import load_program, save_compression
    from bitsweep.splits import preprocessed
    from bitsweep.training.transfer import build_network

    splits = splits_of(cell, store)
    model, _ = build_network(cell.model, len(splits.classes))
    model.load_state_dict(torch.load(trained_of(cell, store).checkpoint, map_location="cpu", weights_only=True))
    compression = cell.method.compress(
        model.eval(), splits, image_size=cell.model.image_size, scheme=cell.scheme, seed=cell.seed
    )
    as_taken = functools.partial(preprocessed, splits=splits, image_size=cell.model.image_size)
    batches = as_taken(splits.test.images, batch=cell.protocol.eval_batch)
    viewed = next(as_taken(splits.val.images[:_VIEWED_IMAGES], batch=_VIEWED_IMAGES))
    original = None if cell.twin is cell else load_program(compressed_of(cell.twin, store).program)
    save_compression(compression, map(np.asarray, batches), folder, viewed=np.asarray(viewed), original=original)


def lower(cell: Cell, store: Store, *, folder: Path, progress: TextIO | None) -> None:
    """Lower the program to the engine's file."""
    from bitsweep.programs import load_program

    cell.backend.lower(load_program(compressed_of(cell, store).program), folder)


def probe(cell: Cell, store: Store, *, folder: Path, progress: TextIO | None) -> None:
    """See whether the engine's kernels hold the largest sums of the scheme."""
    import json

    from bitsweep.measuring.saturation import saturates

    (folder / "probe.json").write_text(json.dumps({"saturates": saturates(cell.backend, cell.scheme)}))


def inspect(cell: Cell, store: Store, *, folder: Path, progress: TextIO | None) -> None:
    """Note size and kernels of an artifact that cannot be run here."""
    from bitsweep.measuring import evaluation

    compressed, image_size = compressed_of(cell, store), cell.model.image_size
    evaluation.inspect(_subject(cell, store), image_size=image_size, compressed=compressed, folder=folder)


def evaluate(cell: Cell, store: Store, *, folder: Path, progress: TextIO | None) -> None:
    """Measure accuracy, parity, size and executed kernels of the artifact."""
    from bitsweep.measuring import evaluation
    from bitsweep.splits import preprocessed

    splits = splits_of(cell, store)
    evaluation.evaluate(
        _subject(cell, store),
        test=splits.test,
        batches=functools.partial(preprocessed, splits=splits, image_size=cell.model.image_size),
        trained=trained_of(cell, store),
        compressed=compressed_of(cell, store),
        saturates=saturates_of(cell, store),
        folder=folder,
    )


def race(cell: Cell, store: Store, *, folder: Path, progress: TextIO | None) -> None:
    """Measure latency against the fp32 artifact of the same engine."""
    import numpy as np

    from bitsweep.measuring import latency

    if cell.backend.timed:
        latency.race(_subject(cell, store), examples=np.load(folder / "examples.npy"), folder=folder)


def weigh(cell: Cell, store: Store, *, folder: Path, progress: TextIO | None) -> None:
    """Measure peak memory."""
    from bitsweep.measuring import memory

    if cell.protocol.memory and cell.backend.timed:
        memory.weigh(_subject(cell, store), examples=folder / "examples.npy", folder=folder)


DATA = Stage(name="dataset", key="dataset_key", passes=(load_data,), axes=("dataset",), limited=False)
BASELINE = Stage(
    name="baseline",
    key="baseline_key",
    passes=(train_baseline,),
    axes=("model", "dataset", "train"),
    limited=False,
    processes=lambda cell: cell.train.devices,
)
COMPRESSED = Stage(
    name="compressed", key="compressed_key", passes=(compress,), axes=("model", "dataset", "method", "precision")
)
ARTIFACT = Stage(name="artifact", key="artifact_key", passes=(lower,), axes=("model", "precision", "backend"))
PROBE = Stage(name="probe", key="probe_key", passes=(probe,), axes=("precision", "backend"))
INSPECTION = Stage(name="inspection", key="key", passes=(inspect,), axes=("model", "backend"))
MEASUREMENT = Stage(
    name="measurement",
    key="key",
    passes=(evaluate, race, weigh),
    axes=("model", "dataset", "backend", "protocol"),
    quiet=True,
)


def needs(cell: Cell) -> list[tuple[Stage, Cell]]:
    """Every stage that the measurement of a cell rests on, in order; also those of its fp32 twin.

    Where the engine cannot run, its files are inspected instead of measured.
    """
    probes = [(PROBE, cell)] if cell.scheme.arithmetic == "integer" else []
    last = [(INSPECTION, cell)] if cell.backend.cannot_run() else [*probes, (MEASUREMENT, cell)]
    return [
        (DATA, cell),
        (BASELINE, cell),
        *((stage, each) for each in dict.fromkeys((cell.twin, cell)) for stage in (COMPRESSED, ARTIFACT)),
        *last,
    ]


# --------------------------------------------------------------------------- running them


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Where stages are run.

    Attributes:
        timeout_s, memory_gb: limits of each pass after training; 0 for none.
        log: file that the children's output is appended to.
    """

    store: Store
    log: Path
    timeout_s: float = 0
    memory_gb: float = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def make(self, stage: Stage, cell: Cell) -> Path:
        """The finished folder of a stage, run now if it is not in the store.

        Raises:
            BitsweepError: the stage failed.
        """
        key = stage.key_of(cell)
        if folder := self.store.find(stage.name, key):
            return folder
        with self.store.building(stage.name, key, about=stage.about(cell)) as folder, machine(quiet=stage.quiet):
            if folder is None:
                return self.store.folder(stage.name, key)
            limits = {"timeout_s": self.timeout_s, "memory_gb": self.memory_gb} if stage.limited else {}
            for work in stage.passes:
                child.call(
                    work, cell, self.store, folder=folder, log=self.log, processes=stage.processes(cell), **limits
                )
        self.seconds[stage.name] = self.seconds.get(stage.name, 0.0) + self.store.seconds(stage.name, key)
        return self.store.folder(stage.name, key)


def run(cell: Cell, workshop: Workshop) -> Outcome:
    """Run a cell to its measurement, as far as this machine can, or to the reason why there is none."""

    def measured() -> Measurement:
        from bitsweep.measuring.passes import load_measurement

        for stage, each in needs(cell):
            folder = workshop.make(stage, each)
        return load_measurement(folder)

    outcome = _outcome(measured, workshop)
    reason = cell.backend.cannot_run()
    return replace(outcome, status="lowered", reason=reason) if reason and outcome.measurement else outcome


def train(cell: Cell, workshop: Workshop) -> Outcome:
    """Run a cell as far as its baseline."""

    def trained() -> None:
        for stage in (DATA, BASELINE):
            workshop.make(stage, cell)

    return _outcome(trained, workshop)


def _outcome(work: Callable[[], Measurement | None], workshop: Workshop) -> Outcome:
    try:
        return Outcome(status="finished", measurement=work(), seconds=workshop.seconds)
    except UsageError as error:
        return Outcome(status="failed", reason=str(error), seconds=workshop.seconds)
    except BitsweepError as error:
        return Outcome(status="failed", reason=str(error), log_tail=_tail(workshop.log), seconds=workshop.seconds)


def _tail(log: Path, lines: int = 30) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


@contextlib.contextmanager
def machine(*, quiet: bool) -> Iterator[None]:
    """Keep measuring apart from all other work on this machine: many may work, or one may measure."""
    import getpass

    from filelock import ReadWriteLock

    lock = ReadWriteLock(Path(tempfile.gettempdir()) / f"bitsweep-{getpass.getuser()}.machine.db")
    with lock.write_lock() if quiet else lock.read_lock():
        yield


# --------------------------------------------------------------------------- reading results back


def splits_of(cell: Cell, store: Store) -> Splits:
    """The data of a cell, with the mean and deviation of the pixels that its model expects."""
    from bitsweep.splits import centred, load_splits, normalized_for_imagenet

    splits = load_splits(_kept(store, DATA, cell))
    match cell.model.pixels:
        case "imagenet":
            return normalized_for_imagenet(splits)
        case "centred":
            return centred(splits)
    return splits


def trained_of(cell: Cell, store: Store) -> Trained:
    """The baseline of a cell."""
    from bitsweep.training.baseline import load_trained

    return load_trained(_kept(store, BASELINE, cell))


def compressed_of(cell: Cell, store: Store) -> Compressed:
    """The program of a cell."""
    from bitsweep.programs import load_compressed

    return load_compressed(_kept(store, COMPRESSED, cell))


def artifact_of(cell: Cell, store: Store) -> Path:
    """The folder of files that the engine loads."""
    return _kept(store, ARTIFACT, cell)


def saturates_of(cell: Cell, store: Store) -> bool:
    """Whether the engine's kernels fail to hold the largest sums of the scheme."""
    import json

    if cell.scheme.arithmetic != "integer":
        return False
    found = json.loads((_kept(store, PROBE, cell) / "probe.json").read_text())
    return bool(found["saturates"])


def _kept(store: Store, stage: Stage, cell: Cell) -> Path:
    """The finished folder of a stage.

    Raises:
        StoreError: there is none, although what needs it was started.
    """
    folder = store.find(stage.name, stage.key_of(cell))
    if folder is None:
        raise StoreError(
            f"the {stage.name} of {cell.name} is not in {store.root}: the store, the code or the data changed during "
            "the sweep; run the same command again"
        )
    return folder


def _subject(cell: Cell, store: Store) -> Any:
    from bitsweep.measuring.passes import Subject

    return Subject(
        artifact=artifact_of(cell, store),
        twin=artifact_of(cell.twin, store),
        backend=cell.backend,
        protocol=cell.protocol,
        scheme=cell.scheme,
    )
