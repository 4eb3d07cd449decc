"""Results of a cell's stages, read back from the store."""

from pathlib import Path

from bitsweep.cell import Cell
from bitsweep.errors import StoreError
from bitsweep.results import Compressed, Measurement, Splits, Trained
from bitsweep.runtime.store import Store
from bitsweep.stages import ARTIFACT, BASELINE, COMPRESSED, DATA, INSPECTION, MEASUREMENT, Stage


def splits_of(cell: Cell, store: Store) -> Splits:
    """The data of a cell, with the mean and standard deviation of the pixels that its model expects."""
    from bitsweep.data.preprocessing import normalized
    from bitsweep.data.splits import load_splits

    return normalized(load_splits(_kept(store, DATA, cell)), cell.model)


def trained_of(cell: Cell, store: Store) -> Trained:
    """The baseline of a cell."""
    from bitsweep.training.trained import load_trained

    return load_trained(_kept(store, BASELINE, cell))


def compressed_of(cell: Cell, store: Store) -> Compressed:
    """The program of a cell."""
    from bitsweep.quantization.compressed import load_compressed

    return load_compressed(_kept(store, COMPRESSED, cell))


def artifact_of(cell: Cell, store: Store) -> Path:
    """The folder of files that the engine loads."""
    return _kept(store, ARTIFACT, cell)


def measurement_by_key(key: str, store: Store) -> Measurement | None:
    """What was measured of the cell with a key, or seen of its files; None where the store does not have it."""
    from bitsweep.measuring.passes import load_measurement

    found = (store.find(stage.name, key) for stage in (MEASUREMENT, INSPECTION))
    return next((load_measurement(folder) for folder in found if folder), None)


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
