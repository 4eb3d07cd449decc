"""What the run of a baseline or a cell says of it: tags, parameters, settings and data."""

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitsweep.cell import Cell
from bitsweep.config.binding import CONFIG_GROUPS
from bitsweep.config.precision import Grid
from bitsweep.results import Outcome, Splits
from bitsweep.runtime.fingerprint import settings
from bitsweep.stages import ARTIFACT, BASELINE, COMPRESSED, DATA, key_of
from bitsweep.tracking.figures import allowed

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Param

#: As many letters as MLflow keeps of a parameter, and of a tag.
_LONGEST_PARAM, LONGEST_TAG = 6000, 5000
#: Tag of a run that says which of its files could not be made, and why; empty where there are all.
MISSING = "missing_files"
#: Tag of the key of the fp32 artifact that a cell is timed against.
TWIN = "twin_key"
#: Tag of the measurement that a run has.
MEASURED = "measured"
#: Tags of the hashes of what a bundle is made from: the facts about an artifact, and the artifact itself.
FACTS_HASH, MODEL_HASH = "facts_sha256", "model_sha256"
#: File of the labels of the test images, beside the logits.
LABELS = "labels.npy"


@dataclass(frozen=True, kw_only=True)
class EndedCell:
    """A cell that has ended, in a sweep.

    Attributes:
        measurement_id: which of its measurements this is; empty where there is none.
        baseline_run_id: run of its baseline; empty where that has none.
    """

    cell: Cell
    outcome: Outcome
    sweep_id: str
    measurement_id: str
    baseline_run_id: str

    @property
    def status(self) -> str:
        """How MLflow calls it; a cell without figures that has not failed is to be measured yet."""
        if self.outcome.measurement:
            return "FINISHED"
        return "FAILED" if self.outcome.status == "failed" else "SCHEDULED"

    @property
    def tags(self) -> dict[str, str]:
        """What runs are found by, and what is said of a cell in words."""
        cell, outcome, measured = self.cell, self.outcome, self.outcome.measurement
        return {
            "cell_key": key_of(cell), "sweep": self.sweep_id, f"sweep.{self.sweep_id}": "measured",
            "status": outcome.status, "reason": outcome.reason[:LONGEST_TAG],
            "baseline_run_id": self.baseline_run_id, "verdict": measured.verdict if measured else "",
            "flags": ", ".join(measured.flags) if measured else "",
            "findings": "\n".join(measured.findings) if measured else "", "scheme_why": cell.scheme.why,
            "arithmetic": cell.scheme.arithmetic, "command": cell.command, "isa": cell.target.cpu.isa,
            "cpu": cell.target.cpu.model, TWIN: ARTIFACT.key_of(cell.twin), MEASURED: self.measurement_id,
        }  # fmt: skip

    @property
    def params(self) -> "list[Param]":
        """Its choices and settings."""
        cell, measured = self.cell, self.outcome.measurement
        params = {
            **cell.choices, "scheme": str(cell.scheme), "weight_bits": _bits(cell.scheme.weights),
            "activation_bits": _bits(cell.scheme.activations), "device": cell.device,
            "image_size": cell.model.image_size, "batch": cell.protocol.batch_sizes[0],
            **_flat("method", cell.method), "threads": cell.protocol.threads or cell.target.cores,
        }  # fmt: skip
        if measured and (used := measured.metrics.get("calibration_images")):
            params["method.calibration_images"] = int(used)  # fewer than were asked for, where there are no more
        return _params(params)


def params_of_baseline(cell: Cell) -> "list[Param]":
    """The choices and settings that a baseline is trained by."""
    return _params({
        "model": cell.model.name, "dataset": cell.dataset.name, "train": cell.train.name, "seed": cell.seed,
        "image_size": cell.model.image_size, **_flat("train", cell.train),
    })  # fmt: skip


def settings_of(cell: Cell) -> dict[str, Any]:
    """All settings of a cell, with the keys of its stages."""
    keys = {f"{stage.name}_key": stage.key_of(cell) for stage in (DATA, BASELINE, COMPRESSED, ARTIFACT)}
    choices = {group: settings(getattr(cell, group)) for group in CONFIG_GROUPS}
    return {
        **choices,
        "seed": cell.seed,
        "scheme": settings(cell.scheme),
        "keys": keys | {"key": key_of(cell)},
        "knobs": dict(cell.knobs),
    }


def data_of(cell: Cell, splits: Splits, context: str) -> "DatasetInput":
    """The data set of a cell, used in a context such as ``test``."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile = {name: len(getattr(splits, name)) for name in ("train", "val", "test")}
    dataset = Dataset(
        name=cell.dataset.name,
        digest=splits.fingerprint[:36],
        source_type="code",
        source=json.dumps(settings(cell.dataset)),
        profile=json.dumps(profile | {"classes": len(splits.classes)}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def _params(values: dict[str, Any]) -> "list[Param]":
    from mlflow.entities import Param

    return [Param(allowed(key), str(value)[:_LONGEST_PARAM]) for key, value in values.items()]


def _flat(prefix: str, configured: Any) -> dict[str, Any]:
    knobs = settings(configured)
    return {f"{prefix}.{name}": value for name, value in knobs.items() if name not in ("class", "name")}


def _bits(numbers: Grid | str) -> int:
    """Bits of a number format."""
    return numbers.bits if isinstance(numbers, Grid) else int(re.sub(r"\D", "", numbers))
