"""NNCF's own quantization as a cell: engines get the file that NNCF makes."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitsweep as bs
from bitsweep import cell as cell_module
from bitsweep import stages
from bitsweep.errors import ConfigError
from bitsweep.methods.nncf import Nncf
from bitsweep.runtime import environment
from bitsweep.runtime.code_used import CodeUsed

pytest.importorskip("nncf")

IMAGES = torch.linspace(-2, 2, 16 * 3 * 12 * 10).reshape(16, 3, 12, 10).sin()


@pytest.fixture(scope="module")
def program() -> Any:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, groups=8),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 3),
    )  # fmt: skip
    return bs.compress(network, IMAGES, method="nncf")


def test_layers_are_recorded_by_their_names(program: Any) -> None:
    layers = program.layers.set_index("name")
    assert list(layers.index) == ["0", "3", "6"]
    assert all(weights.startswith("s8 per-channel") for weights in layers.weights)
    assert layers.activations["3"].startswith("u8 per-channel"), "a scale a channel where a depthwise layer reads"


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_compute_what_the_file_means(engine: str, program: Any, tmp_path: Path) -> None:
    import onnx

    lowered = bs.lower(program, engine, tmp_path / "new")
    meant, given = program(IMAGES.numpy()), lowered(IMAGES.numpy())
    assert np.linalg.norm(given - meant) < 0.03 * np.linalg.norm(meant)
    kept, made = (
        [node.op_type for node in model.graph.node]
        for model in (onnx.load(tmp_path / "new" / "model.onnx"), program.compression.given)
    )
    assert kept == made


def test_engines_without_onnx_are_refused(program: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="backend=fbgemm: takes no ONNX files as they are: use backend=onnxruntime"):
        bs.lower(program, "fbgemm", tmp_path / "new")


def test_its_use_is_not_reported(program: Any) -> None:
    assert program and os.environ["NNCF_CI"]


def test_both_engines_share_one_compression() -> None:
    one, other = bs.grid(["method=nncf", "precision=int8", "backend=onnxruntime,openvino"])
    assert stages.COMPRESSED.key_of(one) == stages.COMPRESSED.key_of(other)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["precision=int4"], "method=nncf makes int8 as NNCF chooses, not int4"),
        (["precision=int8", "backend=fbgemm"], "backend=fbgemm takes no ONNX files as they are"),
        (["precision=int8"], None),
    ],
)
def test_what_does_not_go_together_is_one_line(words: list[str], message: str | None) -> None:
    (cell,) = bs.grid(["method=nncf", *words])
    reason = cell.skip_reason()
    assert reason is None if message is None else message in str(reason)


def test_the_version_of_nncf_is_in_the_key() -> None:
    used = str(CodeUsed("bitsweep.stage_work", "compress", Nncf).found())
    assert f"nncf {environment.version_of('nncf')}" in used


def test_without_the_package_a_cell_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = bs.grid(["method=nncf", "precision=int8"])
    found = environment.version_of
    monkeypatch.setattr(cell_module, "version_of", lambda name: "absent" if name == "nncf" else found(name))
    assert cell.skip_reason() == "nncf is not installed; run: pip install 'bitsweep[nncf]'"
