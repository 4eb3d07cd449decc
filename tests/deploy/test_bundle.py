"""A bundle runs without this project, and says so when it no longer does what was recorded."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bitsweep.data.preprocessing import preprocess
from bitsweep.data.splits import make_splits
from bitsweep.datasets.digits import Digits
from bitsweep.deploy import bundle
from bitsweep.errors import BitsweepError, UsageError
from bitsweep.graphs.tracing import export
from bitsweep.results import Splits
from tests.test_cell import cell

SIZE = 16


@pytest.fixture(scope="module")
def splits() -> Splits:
    return make_splits(Digits(name="digits").decode(), val_share=0.1, seed=0)


@pytest.fixture(scope="module")
def made(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a network that does not know its digits, on images of which it has to guess the size."""
    folder = tmp_path_factory.mktemp("bundle")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 14 * 14, 10))
    of = cell(precision="fp32", model__image_size=SIZE, protocol__threads=1)
    of.backend.lower(export(network.eval(), image_size=SIZE), folder)
    images = preprocess(splits.test.images[:50], image_size=SIZE, mean_C=splits.mean_C, std_C=splits.std_C)
    logits = of.backend.load(folder, threads=1)(images.numpy())
    bundle.write_facts(of, splits, logits, folder)
    bundle.complete(folder)
    return folder


def test_it_does_what_was_recorded(made: Path) -> None:
    assert bundle.verify(made, here=True).startswith("16 of 16 predictions as recorded")


def test_it_runs_without_torch_and_without_this_project(made: Path) -> None:
    program = (made / "classify.py").read_text() + (made / "engine.py").read_text()
    assert "torch" not in program
    assert "bitsweep" not in program
    needs = [line.partition("==")[0] for line in (made / "requirements.txt").read_text().splitlines()]
    assert needs == ["onnxruntime", "numpy", "pillow"]


def test_it_classifies_a_picture(made: Path, splits: Splits, tmp_path: Path) -> None:
    """A file as it would be met: larger, in colour, and with transparency."""
    digit = Image.fromarray(np.asarray(splits.test.images[0, :, :, 0])).resize((32, 32)).convert("RGBA")
    digit.save(tmp_path / "digit.png")
    command = [sys.executable, str(made / "classify.py"), str(tmp_path / "digit.png")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    name, _, guess = said.partition(": ")
    assert name == str(tmp_path / "digit.png")
    assert guess.split(" (")[0] in splits.classes


def test_a_bundle_that_was_changed_is_found_out(made: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(made, tmp_path / "changed")
    about = json.loads((changed / "bundle.json").read_text())
    (changed / "bundle.json").write_text(json.dumps(about | {"mean": [0.9], "std": [-0.1]}))
    with pytest.raises(BitsweepError, match="the recorded predictions did not come out"):
        bundle.verify(changed, here=True)


def test_what_is_no_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no bundle .* bitsweep export"):
        bundle.verify(tmp_path, here=True)


def test_what_cannot_be_deployed_is_named(made: Path, splits: Splits, tmp_path: Path) -> None:
    bundle.write_facts(cell(backend="reference"), splits, np.zeros((50, 10), np.float32), tmp_path)
    with pytest.raises(UsageError, match="nothing to deploy"):
        bundle.complete(tmp_path)
    about = json.loads((made / "bundle.json").read_text())
    (tmp_path / "bundle.json").write_text(json.dumps(about | {"backend": about["backend"] | {"device": "cuda"}}))
    with pytest.raises(UsageError, match=r"export the cell of backend.device=cpu"):
        bundle.complete(tmp_path)
