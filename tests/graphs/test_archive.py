"""Files that would run code in PyTorch's own reader, made from a sound one."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter

from bitsweep.errors import StoreError
from bitsweep.graphs.archive import load_archive, save_archive
from bitsweep.graphs.program import load_program, save_program

GRAPH, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
WEIGHTS = "data/weights/model_weights_config.json"


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def pickled(trap: Trap) -> bytes:
    buffer = io.BytesIO()
    torch.save((trap,), buffer)
    return buffer.getvalue()


def changed(records: dict[str, bytes], name: str, change: Callable[[Any], None]) -> None:
    document = json.loads(records[name])
    change(document)
    records[name] = json.dumps(document).encode()


def node(graph: Any) -> Any:
    return graph["graph_module"]["graph"]["nodes"][0]


def size(graph: Any) -> Any:
    return graph["graph_module"]["graph"]["tensor_values"]["images"]["sizes"][0]["as_expr"]


def call(graph: Any) -> Any:
    return graph["graph_module"]["module_call_graph"][0]["signature"]


def pickle_a_weight(records: dict[str, bytes], trap: Trap) -> None:
    changed(records, WEIGHTS, lambda config: next(iter(config["config"].values())).update(use_pickle=True))
    records["data/weights/weight_0"] = pickled(trap)


def old_format(records: dict[str, bytes], trap: Trap) -> None:
    records["data/weights/model.pt"] = pickled(trap)


ATTACKS: dict[str, Callable[[dict[str, bytes], Trap], None]] = {
    "samples": lambda records, trap: records.update({SAMPLES: pickled(trap)}),
    "weight": pickle_a_weight,
    "old format": old_format,
    "engine": lambda records, trap: records.update({"data/aotinductor/model/a.so": b"code"}),
    "object": lambda records, trap: records.update({"data/constants/opaque_obj_0": pickle.dumps(trap)}),
    "formula": lambda records, trap: changed(
        records, GRAPH, lambda graph: size(graph).update(expr_str=f"__import__('os').mkdir('{trap.file}')")
    ),
    "call": lambda records, trap: changed(records, GRAPH, lambda graph: node(graph).update(target="torch.os.mkdir")),
    "library": lambda records, trap: changed(
        records, GRAPH, lambda graph: node(graph).update(target="torch.ops.aten.from_file.default")
    ),
    "nest": lambda records, trap: changed(
        records,
        GRAPH,
        lambda graph: call(graph).update(in_spec=call(graph)["in_spec"].replace("builtins.tuple", "pathlib.Path")),
    ),
}


@pytest.fixture
def program() -> torch.export.ExportedProgram:
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layer(images.view(images.shape[0], 4))

    batch = torch.export.Dim("batch")
    return torch.export.export(Network(), (torch.zeros(2, 1, 2, 2),), dynamic_shapes=({0: batch},))


def rewritten(path: Path, attack: Callable[[dict[str, bytes]], None]) -> None:
    with PT2ArchiveReader(str(path)) as archive:
        names = [name for name in archive.get_file_names() if name.startswith(("data/", "models/"))]
        records = {name: archive.read_bytes(name) for name in names}
    attack(records)
    with PT2ArchiveWriter(str(path)) as archive:
        for name, content in records.items():
            archive.write_bytes(name, content)


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_in_a_file_runs(attack: str, program: torch.export.ExportedProgram, tmp_path: Path) -> None:
    path, trap = tmp_path / "program.pt2", Trap(tmp_path / "trapped")
    save_archive(program, path)
    rewritten(path, lambda records: ATTACKS[attack](records, trap))
    with pytest.raises(StoreError, match=r"program\.pt2 cannot be loaded; delete its folder"):
        load_program(path)
    assert not trap.file.exists()


def test_guards_in_python_are_left_out(program: torch.export.ExportedProgram, tmp_path: Path) -> None:
    path, trap = tmp_path / "program.pt2", tmp_path / "trapped"
    save_archive(program, path)
    code = [f"__import__('os').mkdir('{trap}')"]
    rewritten(path, lambda records: changed(records, GRAPH, lambda graph: graph.update(guards_code=code)))
    load_archive(path).module()(torch.zeros(3, 1, 2, 2))
    assert not trap.exists()


def test_a_sound_file_is_read_and_holds_no_samples(program: torch.export.ExportedProgram, tmp_path: Path) -> None:
    path, images = tmp_path / "program.pt2", torch.randn(3, 1, 2, 2)
    save_program(program, path)
    with zipfile.ZipFile(path) as archive:
        (samples,) = (entry for entry in archive.infolist() if entry.filename.endswith(SAMPLES))
    assert samples.file_size == 0
    expected = program.module()(images)
    np.testing.assert_array_equal(load_program(path).module()(images).detach(), expected.detach())
    assert program.example_inputs is not None
    torch.export.save(program, path)  # with samples that are tensors
    np.testing.assert_array_equal(load_program(path).module()(images).detach(), expected.detach())
