"""The files that the figures of a cell and of a baseline are believed by: pictures, records, and facts for a bundle."""

import json
from dataclasses import asdict
from pathlib import Path

from bitsweep.plots.cell import Shown, pictures
from bitsweep.plots.records import records
from bitsweep.plots.training import draw_training
from bitsweep.results import Trained
from bitsweep.runtime.file_by_file import Maker

#: Folder, among the files, of those that a report shows.
PICTURES = "pictures"


def files_of_cell(shown: Shown) -> dict[str, Maker]:
    """What was done to its layers, what was recorded, and pictures: name of a file -> what writes it."""
    compressed, measured = shown.compressed, shown.measurement
    recorded = records(compressed.curves, [*compressed.tables, *measured.tables])
    return {
        "layers.json": lambda path: _write_json([asdict(layer) for layer in compressed.layers], path),
        "details.json": lambda path: _write_json(measured.details, path),
        **{f"records/{name}": make for name, make in recorded.items()},
        **{f"{PICTURES}/{name}": make for name, make in pictures(shown).items()},
    }


def files_of_baseline(trained: Trained, *, name: str) -> dict[str, Maker]:
    """How it was trained: name of a file -> what writes it."""
    history = trained.history
    files: dict[str, Maker] = {
        "history.json": lambda path: _write_json([asdict(epoch) for epoch in history], path),
    }
    if history:
        files[f"{PICTURES}/training.png"] = lambda path: draw_training(history, trained.best_epoch, path, name=name)
    return files


def _write_json(content: object, path: Path) -> None:
    path.write_text(json.dumps(content, indent=2))
