"""What each stage does: functions that fill a folder of the store, each in a process of its own.

A function reads what it is handed and nothing else. Its parameters say what that is: settings of the cell, and the
folders of stages before it. So they also say what is in the stage's key, see `bitsweep.stages`.
"""

import functools
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bitsweep.config.backend import Backend
from bitsweep.config.dataset import Dataset
from bitsweep.config.file_model import FileModel
from bitsweep.config.method import Method
from bitsweep.config.model import Model
from bitsweep.config.precision import Precision, Scheme
from bitsweep.config.protocol import MeasurementProtocol
from bitsweep.config.recipe import Recipe
from bitsweep.config.target import Target
from bitsweep.data.pixels import Framing
from bitsweep.errors import StoreError
from bitsweep.measuring.passes import Subject
from bitsweep.results import Array
from bitsweep.runtime.progress import Progress

if TYPE_CHECKING:
    from bitsweep.measuring.accuracy import Material

#: Images that the statistics of layers are of.
_PROBE_IMAGES = 8
#: Validation images that the reference is screened on, at most: it is slower than any engine.
_SCREENED_IMAGES = 1000
#: Signal-to-noise ratio of an uncompressed program's logits to those that were recorded after training, at least.
_LEAST_SQNR_DB = 20


def load_data(*, dataset: Dataset, framing: Framing | None, published: bool, folder: Path, progress: Progress) -> None:
    """Decode the data set, as the network wants its pictures, and split it."""
    from bitsweep.data.framing import framed
    from bitsweep.data.splits import make_splits

    raw = framed(dataset.decode(), framing, published=published)
    make_splits(raw, val_share=dataset.val_share, seed=dataset.split_seed, folder=folder, progress=progress)


def train_baseline(
    *,
    baseline_model: Model,
    train: Recipe,
    seed: int,
    data: Path,
    folder: Path,
    unfinished: Path,
    progress: Progress,
    rank: int = 0,
) -> None:
    """Train the fp32 baseline, in one process or several."""
    from bitsweep.data.preprocessing import normalized
    from bitsweep.data.splits import load_splits
    from bitsweep.training.baseline import fit

    splits = normalized(load_splits(data), baseline_model)
    fit(
        baseline_model, splits, recipe=train, seed=seed, folder=folder, rank=rank, unfinished=unfinished,
        progress=progress,
    )  # fmt: skip


def compress(
    *,
    model: Model,
    method: Method,
    scheme: Scheme,
    seed: int,
    eval_batch: int,
    parity_images: int,
    data: Path,
    baseline: Path,
    original: Path | None,
    folder: Path,
    progress: Progress,
) -> None:
    """Compress the baseline to a program, look into it, and run it on test images: the reference.

    Most methods start from the uncompressed program, so that a network is traced once.
    The uncompressed program is the network that was run on all test images after training. So it is run on a batch, to
    see that it still is.
    """
    import numpy as np
    import torch

    from bitsweep.data.preprocessing import normalized, preprocessed
    from bitsweep.data.sampling import sample_of_tests
    from bitsweep.data.splits import load_splits
    from bitsweep.graphs.onnx.reading import load_onnx
    from bitsweep.graphs.program import load_program, logits_of, looks_at_batches
    from bitsweep.graphs.tracing import Exported
    from bitsweep.quantization.compressed import load_compressed, save_compression
    from bitsweep.runtime.allocation import keep_freed_memory
    from bitsweep.training.network import build_network
    from bitsweep.training.trained import load_trained

    keep_freed_memory()
    splits = normalized(load_splits(data), model)
    trained = load_trained(baseline)
    uncompressed = load_compressed(original) if original and not method.keeps_files else None
    before = load_program(uncompressed.program) if uncompressed else None
    network: torch.nn.Module
    if uncompressed and before and method.takes_exported(scheme):
        network = Exported(before, normalized=uncompressed.normalized)
    else:
        network, _ = build_network(model, len(splits.classes))
        if not method.keeps_files:
            network.load_state_dict(torch.load(trained.checkpoint, map_location="cpu", weights_only=True))
    compression = method.compress(network.eval(), splits, input_shape=model.input_shape, scheme=scheme, seed=seed)
    as_taken = functools.partial(preprocessed, splits=splits, input_shape=model.input_shape)
    # What chooses ranges for a whole batch is to see the batches that the engine sees: those of all images.
    count = len(splits.test) if looks_at_batches(compression.program) else parity_images
    reference_N = sample_of_tests(splits, count)
    batches = map(np.asarray, as_taken(splits.test.images[reference_N], batch=eval_batch))
    reference_NK = trained.test_logits_NK[reference_N]
    if original or not np.isfinite(reference_NK).all():
        reference_NK = logits_of(compression.program, batches)
    else:
        first_NK = logits_of(compression.program, [next(batches)])
        _require_same_network(first_NK, reference_NK[: len(first_NK)])
    probe_images = next(as_taken(splits.probe_images[:_PROBE_IMAGES], batch=_PROBE_IMAGES))
    watched = method.calibrated_on(len(splits.calibration), scheme)
    save_compression(
        compression, folder, reference_N=reference_N, reference_NK=reference_NK,
        probe_images=np.asarray(probe_images), calibrated_on=watched, original=before,
        given=load_onnx(Path(model.file).expanduser()) if method.keeps_files and isinstance(model, FileModel) else None,
    )  # fmt: skip


def _require_same_network(logits_NK: Array, recorded_NK: Array) -> None:
    """Refuse an uncompressed program that is not the network which was trained.

    Raises:
        StoreError: its logits are others than those that were recorded.
    """
    from bitsweep.stats import sqnr_db

    if not sqnr_db(recorded_NK, logits_NK) > _LEAST_SQNR_DB:
        raise StoreError(
            f"the fp32 program gives other logits than its baseline did after training "
            f"({sqnr_db(recorded_NK, logits_NK):.0f} dB): the checkpoint or the code of the model changed; delete the "
            "baseline in the store and run again"
        )


def screen(
    *, model: Model, eval_batch: int, data: Path, baseline: Path, compressed: Path, folder: Path, progress: Progress
) -> None:
    """Classify validation images by the reference: about what every engine with this scheme will make of them."""
    import numpy as np

    from bitsweep.data.preprocessing import normalized, preprocessed
    from bitsweep.data.sampling import sample_of_validation
    from bitsweep.data.splits import load_splits
    from bitsweep.graphs.program import load_program, logits_of
    from bitsweep.quantization.compressed import load_compressed
    from bitsweep.training.trained import load_trained

    splits, loaded = normalized(load_splits(data), model), load_compressed(compressed)
    size_mb = sum(layer.stored_bits for layer in loaded.layers) / 8e6
    found = {"size_mb": size_mb, "images": 0, "right": 0, "lost": 0, "gained": 0}
    chosen_N = sample_of_validation(splits, _SCREENED_IMAGES)
    if len(chosen_N):
        images = preprocessed(
            splits.val.images[chosen_N], batch=eval_batch, splits=splits, input_shape=model.input_shape
        )
        said_N = logits_of(load_program(loaded.program), map(np.asarray, images)).argmax(1)
        right_N, before_N = said_N == splits.val.labels[chosen_N], load_trained(baseline).validation_right_N[chosen_N]
        found |= {
            "images": len(chosen_N),
            "right": int(right_N.sum()),
            "lost": int((before_N & ~right_N).sum()),
            "gained": int((right_N & ~before_N).sum()),
        }
    (folder / "screening.json").write_text(json.dumps(found))


def lower(*, backend: Backend, compressed: Path, folder: Path, progress: Progress) -> None:
    """Lower the program to the engine's file."""
    from bitsweep.graphs.program import load_program
    from bitsweep.quantization.compressed import load_compressed

    loaded = load_compressed(compressed)
    if loaded.given:
        backend.take(loaded.given, folder)
    else:
        backend.lower(load_program(loaded.program), folder)


def probe(*, backend: Backend, scheme: Scheme, folder: Path, progress: Progress) -> None:
    """See whether the engine's kernels hold the largest sums of the scheme."""
    from bitsweep.measuring.saturation import saturates

    (folder / "probe.json").write_text(json.dumps({"saturates": saturates(backend, scheme)}))


def inspect(
    *,
    model: Model,
    backend: Backend,
    scheme: Scheme,
    protocol: MeasurementProtocol,
    target: Target,
    compressed: Path,
    artifact: Path,
    twin: Path,
    folder: Path,
    progress: Progress,
) -> None:
    """Record size and kernels of an artifact that cannot be run here."""
    from bitsweep.measuring import accuracy
    from bitsweep.quantization.compressed import load_compressed

    subject = Subject(artifact=artifact, twin=twin, backend=backend, protocol=protocol, scheme=scheme, target=target)
    accuracy.inspect(subject, input_shape=model.input_shape, compressed=load_compressed(compressed), folder=folder)


def evaluate(
    *,
    model: Model,
    backend: Backend,
    scheme: Scheme,
    protocol: MeasurementProtocol,
    target: Target,
    data: Path,
    baseline: Path,
    compressed: Path,
    artifact: Path,
    twin: Path,
    probed: Path | None,
    folder: Path,
    progress: Progress,
) -> None:
    """Measure accuracy, parity, size and executed kernels of the artifact."""
    from bitsweep.measuring import accuracy
    from bitsweep.runtime.allocation import keep_freed_memory

    keep_freed_memory()
    accuracy.evaluate(
        Subject(artifact=artifact, twin=twin, backend=backend, protocol=protocol, scheme=scheme, target=target),
        _material(model, protocol, data=data, baseline=baseline, compressed=compressed),
        saturates=probed is not None and json.loads((probed / "probe.json").read_text())["saturates"],
        folder=folder,
    )


def _material(
    model: Model, protocol: MeasurementProtocol, *, data: Path, baseline: Path, compressed: Path
) -> "Material":
    """What an artifact is judged by."""
    from bitsweep.data.preprocessing import normalized, preprocessed
    from bitsweep.data.sampling import sample_of_validation
    from bitsweep.data.splits import load_splits
    from bitsweep.measuring.accuracy import Material
    from bitsweep.quantization.compressed import load_compressed
    from bitsweep.training.trained import load_trained

    splits = normalized(load_splits(data), model)
    return Material(
        splits=splits,
        validation_N=sample_of_validation(splits, protocol.validation_images),
        batches=functools.partial(preprocessed, splits=splits, input_shape=model.input_shape),
        trained=load_trained(baseline),
        compressed=load_compressed(compressed),
    )


def measure_latency(
    *,
    backend: Backend,
    scheme: Scheme,
    protocol: MeasurementProtocol,
    target: Target,
    artifact: Path,
    twin: Path,
    folder: Path,
    progress: Progress,
) -> None:
    """Measure latency against the fp32 artifact of the same engine."""
    import numpy as np

    from bitsweep.measuring import latency

    if backend.timed:
        subject = Subject(
            artifact=artifact, twin=twin, backend=backend, protocol=protocol, scheme=scheme, target=target
        )
        latency.measure_latency(subject, examples=np.load(folder / "examples.npy"), folder=folder)


def measure_memory(
    *,
    backend: Backend,
    scheme: Scheme,
    protocol: MeasurementProtocol,
    target: Target,
    artifact: Path,
    twin: Path,
    folder: Path,
    progress: Progress,
) -> None:
    """Measure peak memory."""
    from bitsweep.measuring import memory

    if protocol.memory and backend.timed:
        subject = Subject(
            artifact=artifact, twin=twin, backend=backend, protocol=protocol, scheme=scheme, target=target
        )
        memory.measure_memory(subject, examples=folder / "examples.npy", folder=folder)


def measure_there(
    *,
    model: Model,
    backend: Backend,
    scheme: Scheme,
    protocol: MeasurementProtocol,
    target: Target,
    data: Path,
    baseline: Path,
    compressed: Path,
    artifact: Path,
    twin: Path,
    folder: Path,
    progress: Progress,
) -> None:
    """Let another machine run the artifact, and judge here what it computed and how long that took."""
    from bitsweep.measuring import elsewhere
    from bitsweep.measuring.kit import write_kit

    material = _material(model, protocol, data=data, baseline=baseline, compressed=compressed)
    subject = Subject(artifact=artifact, twin=twin, backend=backend, protocol=protocol, scheme=scheme, target=target)
    with tempfile.TemporaryDirectory(prefix="bitsweep-kit-") as scratch:
        kit, results = Path(scratch) / "kit", Path(scratch) / "results"
        for each in (kit, results):
            each.mkdir()
        probe = elsewhere.write_probe(subject, Path(scratch)) if scheme.arithmetic == "integer" else None
        write_kit(kit, subject, material, input_shape=model.input_shape, probe=probe)
        target.measure(kit, results, progress)
        elsewhere.judge(subject, material, results, probe=probe, folder=folder)


def gather_evidence(
    *,
    name: str,
    model: Model,
    dataset: Dataset,
    precision: Precision,
    backend: Backend,
    scheme: Scheme,
    protocol: MeasurementProtocol,
    target: Target,
    data: Path,
    baseline: Path,
    compressed: Path,
    measured: Path,
    folder: Path,
    progress: Progress,
) -> None:
    """Write records and facts of a measurement, and draw its pictures."""
    from bitsweep import evidence
    from bitsweep.data.preprocessing import normalized
    from bitsweep.data.splits import load_splits
    from bitsweep.deploy.facts import FOLDER, facts_of
    from bitsweep.measuring.passes import load_measurement
    from bitsweep.plots.cell import Shown
    from bitsweep.quantization.compressed import load_compressed
    from bitsweep.runtime.file_by_file import make_files
    from bitsweep.training.trained import load_trained

    splits, measurement = normalized(load_splits(data), model), load_measurement(measured)
    shown = Shown(
        name=name, precision=precision.name, backend=backend.name, splits=splits, trained=load_trained(baseline),
        compressed=load_compressed(compressed), measurement=measurement, batch_sizes=protocol.batch_sizes,
    )  # fmt: skip
    files = evidence.files_of_cell(shown)
    if measurement.logits:
        facts = facts_of(
            splits, measurement.logits, name=name, model=model, dataset=dataset, backend=backend, scheme=scheme,
            protocol=protocol, target=target,
        )  # fmt: skip
        files = {f"{FOLDER}/{file}": write for file, write in facts.items()} | files
    make_files(files, folder)


def gather_baseline_evidence(*, baseline_name: str, baseline: Path, folder: Path, progress: Progress) -> None:
    """Draw how a baseline was trained."""
    from bitsweep.evidence import files_of_baseline
    from bitsweep.runtime.file_by_file import make_files
    from bitsweep.training.trained import load_trained

    make_files(files_of_baseline(load_trained(baseline), name=baseline_name), folder)
