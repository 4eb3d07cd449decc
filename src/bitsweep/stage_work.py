"""What each stage does: a function of a cell that writes one folder of the store, in a process of its own."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from bitsweep import stages
from bitsweep.cell import Cell
from bitsweep.cell_results import compressed_of, saturates_of, splits_of, subject_of, trained_of
from bitsweep.errors import StoreError
from bitsweep.results import Array
from bitsweep.runtime.store import Store

#: Validation images on which layers are looked at.
_VIEWED_IMAGES = 8
#: Signal-to-noise ratio of an uncompressed program's logits to those that were recorded after training, at least.
_LEAST_SQNR_DB = 20


def load_data(cell: Cell, store: Store, *, folder: Path, progress: TextIO | None) -> None:
    """Decode the data set and split it."""
    from bitsweep.data.splits import make_splits

    data = cell.dataset
    make_splits(data.decode(), val_share=data.val_share, seed=data.split_seed, folder=folder, progress=progress)


def train_baseline(cell: Cell, store: Store, *, folder: Path, progress: TextIO | None, rank: int = 0) -> None:
    """Train the fp32 baseline, in one process or several."""
    from bitsweep.training.baseline import fit

    unfinished = store.unfinished(stages.BASELINE.name, cell.baseline_key)
    fit(
        cell.model, splits_of(cell, store), recipe=cell.train, seed=cell.seed, folder=folder, rank=rank,
        unfinished=unfinished, progress=progress,
    )  # fmt: skip


def compress(cell: Cell, store: Store, *, folder: Path, progress: TextIO | None) -> None:
    """Compress the baseline to a program, look into it, and run it on the test images: the reference."""
    import numpy as np
    import torch

    from bitsweep.data.preprocessing import preprocessed
    from bitsweep.graphs.program import load_program
    from bitsweep.quantization.compressed import save_compression
    from bitsweep.training.network import build_network

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
    if original is None:
        _require_same_network(np.load(folder / "test_logits.npy"), trained_of(cell, store).test_logits_NK)


def _require_same_network(logits_NK: Array, recorded_NK: Array) -> None:
    """Refuse an uncompressed program that is not the network which was trained.

    Raises:
        StoreError: its logits are others than those that were recorded.
    """
    import numpy as np

    from bitsweep.stats import sqnr_db

    if np.isfinite(recorded_NK).all() and not sqnr_db(recorded_NK, logits_NK) > _LEAST_SQNR_DB:
        raise StoreError(
            f"the fp32 program gives other logits than its baseline did after training "
            f"({sqnr_db(recorded_NK, logits_NK):.0f} dB): the checkpoint or the code of the model changed; delete the "
            "baseline in the store and run again"
        )


def lower(cell: Cell, store: Store, *, folder: Path, progress: TextIO | None) -> None:
    """Lower the program to the engine's file."""
    from bitsweep.graphs.program import load_program

    cell.backend.lower(load_program(compressed_of(cell, store).program), folder)


def probe(cell: Cell, store: Store, *, folder: Path, progress: TextIO | None) -> None:
    """See whether the engine's kernels hold the largest sums of the scheme."""
    import json

    from bitsweep.measuring.saturation import saturates

    (folder / "probe.json").write_text(json.dumps({"saturates": saturates(cell.backend, cell.scheme)}))


def inspect(cell: Cell, store: Store, *, folder: Path, progress: TextIO | None) -> None:
    """Note size and kernels of an artifact that cannot be run here."""
    from bitsweep.measuring import accuracy

    compressed, image_size = compressed_of(cell, store), cell.model.image_size
    accuracy.inspect(subject_of(cell, store), image_size=image_size, compressed=compressed, folder=folder)


def evaluate(cell: Cell, store: Store, *, folder: Path, progress: TextIO | None) -> None:
    """Measure accuracy, parity, size and executed kernels of the artifact."""
    from bitsweep.data.preprocessing import preprocessed
    from bitsweep.measuring import accuracy

    splits = splits_of(cell, store)
    accuracy.evaluate(
        subject_of(cell, store),
        test=splits.test,
        batches=functools.partial(preprocessed, splits=splits, image_size=cell.model.image_size),
        trained=trained_of(cell, store),
        compressed=compressed_of(cell, store),
        saturates=saturates_of(cell, store),
        folder=folder,
    )


def measure_latency(cell: Cell, store: Store, *, folder: Path, progress: TextIO | None) -> None:
    """Measure latency against the fp32 artifact of the same engine."""
    import numpy as np

    from bitsweep.measuring import latency

    if cell.backend.timed:
        latency.measure_latency(subject_of(cell, store), examples=np.load(folder / "examples.npy"), folder=folder)


def measure_memory(cell: Cell, store: Store, *, folder: Path, progress: TextIO | None) -> None:
    """Measure peak memory."""
    from bitsweep.measuring import memory

    if cell.protocol.memory and cell.backend.timed:
        memory.measure_memory(subject_of(cell, store), examples=folder / "examples.npy", folder=folder)


#: What fills the folder of each stage, one function after the other, each ``(cell, store, *, folder, progress)``.
PASSES: dict[stages.Stage, tuple[Callable[..., None], ...]] = {
    stages.DATA: (load_data,),
    stages.BASELINE: (train_baseline,),
    stages.COMPRESSED: (compress,),
    stages.ARTIFACT: (lower,),
    stages.PROBE: (probe,),
    stages.INSPECTION: (inspect,),
    stages.MEASUREMENT: (evaluate, measure_latency, measure_memory),
}
