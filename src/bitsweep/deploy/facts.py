"""What a bundle has to know of a cell, written down when the cell is measured."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bitsweep.config.backend import Backend
from bitsweep.config.dataset import Dataset
from bitsweep.config.model import Model
from bitsweep.config.precision import Scheme
from bitsweep.config.protocol import MeasurementProtocol
from bitsweep.config.target import Target
from bitsweep.data.pixels import StoredForm
from bitsweep.measuring.accuracy import LEAST_FLOAT_SQNR_DB, LEAST_SQNR_DB
from bitsweep.results import Splits
from bitsweep.runtime.environment import release_of
from bitsweep.runtime.fingerprint import settings

#: Folder of the facts among the files of a cell.
FOLDER = "bundle"
#: What every bundle imports, whatever runs its artifact.
_NEEDS = ("numpy", "pillow")


def facts_of(
    splits: Splits,
    logits: Path,
    *,
    name: str,
    model: Model,
    dataset: Dataset,
    backend: Backend,
    scheme: Scheme,
    protocol: MeasurementProtocol,
    target: Target,
) -> dict[str, Callable[[Path], None]]:
    """What a bundle needs to know: name of a file -> what writes it.

    That is ``bundle.json``; ``recorded.npz``, some test images and their logits; and ``originals``, the files that
    those images were decoded from.

    Args:
        logits: ``.npy`` file with those of all test images, by the artifact.
        name: of the cell.
    """
    height, width, channels = splits.test.images.shape[1:]
    shape = {"height": height, "width": width, "channels": channels}
    framing = vars(splits.framing) if splits.framing else {}
    cpu = target.cpu
    about: dict[str, Any] = {
        "cell": name,
        "artifact": backend.artifact,
        "deploy_module": backend.deploy_module,
        "deploy_with": backend.deploy_with,
        "backend": settings(backend),
        "threads": protocol.threads or target.cores,
        "requirements": [f"{package}=={release_of(package)}" for package in (*backend.deploy_needs, *_NEEDS)],
        "input_shape": model.input_shape,
        "form": asdict(StoredForm(**(framing | shape), crop=splits.crop, white=splits.white)),
        "pictures": dataset.pictures,
        "mean": splits.mean_C,
        "std": splits.std_C,
        "bgr": splits.bgr,
        "classes": splits.classes,
        "scheme": str(scheme),
        "scheme_why": scheme.why,
        "least_sqnr_db": LEAST_FLOAT_SQNR_DB if scheme.arithmetic == "float32" else LEAST_SQNR_DB,
        "cpu": {"model": cpu.model, "isa": cpu.isa},
    }
    return {
        "bundle.json": partial(_write_about, about),
        "recorded.npz": partial(_write_recorded, splits, logits),
        **{
            f"originals/{number:02}{file.suffix}": partial(shutil.copyfile, file)
            for number, file in splits.originals.items()
        },
    }


def _write_about(about: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(about, indent=2))


def _write_recorded(splits: Splits, logits: Path, path: Path) -> None:
    logits_NK = np.load(logits, mmap_mode="r")
    images = np.asarray(splits.test.images[splits.recorded])
    np.savez_compressed(path, images=images, logits=logits_NK[splits.recorded])
