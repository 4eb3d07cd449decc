"""A compression as files: the program, what became of each layer, and the reference's logits.

Reading it back needs no PyTorch.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bitsweep.results import Array, Compressed, Compression, Curve, Distribution, LayerRecord, LayerStats, Table

if TYPE_CHECKING:
    import onnx
    from torch.export import ExportedProgram

_GIVEN = "given.onnx"


def save_compression(
    compression: Compression,
    folder: Path,
    *,
    reference_N: Array,
    reference_NK: Array,
    probe_images: Array,
    calibrated_on: int = 0,
    original: "ExportedProgram | None" = None,
    given: "onnx.ModelProto | None" = None,
) -> None:
    """Write what a method returned into a folder, with the reference's logits for some test images.

    Args:
        reference_N: indices of these images, int64 [N].
        reference_NK: float32 logits of these images.
        probe_images: a few images that the statistics of the layers are of.
        calibrated_on: number of images that the method watched.
        original: program of the network before it was compressed; None if it was not.
        given: ONNX file that the network came in, which engines are to get; None for the one that the method made, if
            it did.
    """
    import torch

    from bitsweep.graphs.program import save_program
    from bitsweep.quantization.analysis.layer_stats import layer_stats

    if file := given or compression.given:
        import onnx

        onnx.save(file, folder / _GIVEN)
    save_program(compression.program, folder / "program.pt2")
    records = {name: [asdict(each) for each in getattr(compression, name)] for name in ("layers", "curves", "tables")}
    (folder / "records.json").write_text(
        json.dumps({**records, "calibrated_on": calibrated_on, "normalized": compression.normalized})
    )
    _save_layer_stats(
        layer_stats(original or compression.program, compression.program, torch.from_numpy(probe_images)), folder
    )
    np.savez(folder / "reference.npz", images=reference_N, logits=reference_NK)


def load_compressed(folder: Path) -> Compressed:
    """Read back what ``save_compression`` wrote; the program itself stays on disk."""
    records = json.loads((folder / "records.json").read_text())
    with np.load(folder / "reference.npz", allow_pickle=False) as reference:
        reference_N, reference_NK = reference["images"], reference["logits"]
    given = folder / _GIVEN
    return Compressed(
        program=folder / "program.pt2",
        given=given if given.exists() else None,
        layers=tuple(LayerRecord(**each) for each in records["layers"]),
        curves=tuple(Curve(**each) for each in records["curves"]),
        tables=tuple(map(Table.from_json, records["tables"])),
        layer_stats=_load_layer_stats(folder),
        calibrated_on=records["calibrated_on"],
        normalized=tuple(records["normalized"]),
        reference_N=reference_N,
        reference_NK=reference_NK,
    )


def _save_layer_stats(stats: tuple[LayerStats, ...], folder: Path) -> None:
    maps = {layer.name: layer.maps_2CHW for layer in stats if layer.maps_2CHW is not None}
    np.savez_compressed(folder / "feature_maps.npz", allow_pickle=False, **maps)
    (folder / "layer_stats.json").write_text(json.dumps([asdict(replace(layer, maps_2CHW=None)) for layer in stats]))


def _load_layer_stats(folder: Path) -> tuple[LayerStats, ...]:
    with np.load(folder / "feature_maps.npz", allow_pickle=False) as maps:
        return tuple(
            LayerStats(
                **layer
                | {what: Distribution(**layer[what]) for what in ("weights", "inputs")}
                | {"maps_2CHW": maps.get(layer["name"])}
            )
            for layer in json.loads((folder / "layer_stats.json").read_text())
        )
