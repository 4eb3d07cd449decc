"""A bundle runs without this project, and says so when it no longer does what was recorded."""

import ast
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bitsweep.cell import Cell
from bitsweep.data.preprocessing import preprocess
from bitsweep.data.splits import make_splits
from bitsweep.datasets.digits import Digits
from bitsweep.datasets.image_folder import ImageFolder
from bitsweep.deploy import bundle
from bitsweep.deploy.facts import facts_of
from bitsweep.deploy.manifest import check_manifest, write_manifest
from bitsweep.errors import BitsweepError, UsageError
from bitsweep.graphs.tracing import export
from bitsweep.results import Array, Splits
from tests.graphs.test_archive import SAMPLES, Trap, pickled, rewritten
from tests.test_cell import cell

SIZE = 16


@pytest.fixture(scope="module")
def splits() -> Splits:
    return make_splits(Digits(name="digits").decode(), val_share=0.1, seed=0)


def write_facts(of: Cell, splits: Splits, logits_NK: Array, folder: Path) -> None:
    """What is known of a cell, with the command that is added when it is exported."""
    np.save(folder / "logits.npy", logits_NK)
    facts = facts_of(
        splits, folder / "logits.npy", name=of.name, model=of.model, dataset=of.dataset, backend=of.backend,
        scheme=of.scheme, protocol=of.protocol, target=of.target,
    )  # fmt: skip
    for name, write in facts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write(folder / name)
    (folder / "logits.npy").unlink()
    about = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(about | {"command": of.command}))


def make_bundle(splits: Splits, folder: Path, *, backend: str = "onnxruntime") -> np.ndarray:
    """The bundle of a network of random weights, and its logits of the test images."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 14 * 14, len(splits.classes))
    )
    of = cell(precision="fp32", backend=backend, model__image_size=SIZE, protocol__threads=1)
    of.backend.lower(export(network.eval(), input_shape=(3, SIZE, SIZE)), folder)
    images = preprocess(splits.test.images, input_shape=(3, SIZE, SIZE), mean_C=splits.mean_C, std_C=splits.std_C)
    logits = of.backend.load(folder, threads=1)(images.numpy())
    write_facts(of, splits, logits, folder)
    bundle.complete(folder)
    return logits


@pytest.fixture(scope="module")
def made(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a network that does not know its digits, on images of which it has to guess the size."""
    folder = tmp_path_factory.mktemp("bundle")
    make_bundle(splits, folder)
    return folder


def verified(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """What is said before a bundle is run, and by it."""
    said = bundle.verify(folder, here=True)
    return capsys.readouterr().out, said


def run(folder: Path, *names: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", str(folder / "classify.py"), *names]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_does_what_was_recorded(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, said = verified(made, capsys)
    assert before == (
        f"{made}: every file is as its manifest.json says; runs a copy of batches.py, classify.py, engine.py, "
        "manifest.py, network_input.py, pixels.py in this environment\n"
    )
    assert said.startswith(
        "16 of 16 predictions as recorded; largest difference of logits 0.0e+00 of the largest, "
        "SQNR inf dB (at least 60)"
    )


def test_it_runs_without_torch_and_without_this_project(made: Path) -> None:
    for file in made.glob("*.py"):
        tree = ast.parse(file.read_text())
        imports = {node.names[0].name for node in ast.walk(tree) if isinstance(node, ast.Import)}
        imports |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {name.partition(".")[0] for name in imports} & {"torch", "bitsweep"}
    needs = [line.partition("==")[0] for line in (made / "requirements.txt").read_text().splitlines()]
    assert needs == ["onnxruntime", "numpy", "pillow"]


def test_it_classifies_a_picture(made: Path, splits: Splits, tmp_path: Path) -> None:
    """A file as it would be met: larger, in colour, and with transparency."""
    digit = Image.fromarray(np.asarray(splits.test.images[0, :, :, 0])).resize((32, 32)).convert("RGBA")
    digit.save(tmp_path / "digit.png")
    done = run(made, str(tmp_path / "digit.png"))
    name, _, guess = done.stdout.partition(": ")
    assert (name, done.returncode) == (str(tmp_path / "digit.png"), 0)
    assert guess.split(" (")[0] in splits.classes


def test_a_broken_picture_is_one_line_among_the_others(made: Path, tmp_path: Path) -> None:
    good, broken, strange = tmp_path / "good.png", tmp_path / "broken.png", tmp_path / "\x1b[31m.png"
    Image.new("L", (9, 9), 40).save(good)
    strange.write_bytes(good.read_bytes())
    broken.write_bytes(good.read_bytes()[:40])
    os.mkfifo(tmp_path / "pipe.png")
    Image.new("F", (9, 9)).save(tmp_path / "float.tiff")
    names = [good, broken, tmp_path / "none.png", tmp_path / "pipe.png", tmp_path, tmp_path / "float.tiff", strange]
    done = run(made, *map(str, names))
    assert done.returncode == 1
    assert [line.rpartition(": ")[0] for line in done.stdout.splitlines()] == [str(good), f"{tmp_path}/\\x1b[31m.png"]
    named = dict(line.split(": cannot be read ") for line in done.stderr.splitlines())
    assert list(named) == [str(name) for name in names[1:-1]]
    assert list(named.values())[1:] == [
        "(no such file)", "(no file)", "(no file)", "(float pixels have no agreed white)",
    ]  # fmt: skip
    assert run(made).returncode == 2


MODES = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "tiff": ("CMYK", "YCbCr", "LAB", "RGBX", "I;16B"),
    "jpg": ("L", "RGB", "CMYK"),
}


def picture(mode: str, seed: int, bright: bool) -> Image.Image:
    """A picture of 50 x 40 whose right half is brighter or darker than the left, in whatever mode."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 120, (40, 50, 3), dtype=np.uint8)
    pixels[:, 25:] += np.uint8(120 * bright)
    if mode.startswith("I"):
        deep = (pixels[..., 0].astype(int) * 17).astype(">u2" if mode.endswith("B") else "<u2")
        return Image.frombytes(mode, (50, 40), deep.tobytes())
    if mode == "RGBX":
        return Image.frombytes(mode, (50, 40), np.dstack([pixels, pixels[..., 0]]).tobytes())
    image = Image.fromarray(pixels)
    if mode == "LAB":
        return Image.merge(mode, image.split())
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(pixels[..., 1]))
    return image.convert(mode)


@pytest.fixture(scope="module")
def photographed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, np.ndarray, Splits]:
    """A bundle on a folder with files of every kind: the folder, the bundle, the logits and the data."""
    root, store, folder = (tmp_path_factory.mktemp(name) for name in ("root", "store", "bundle"))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = [(suffix, mode) for suffix, modes in MODES.items() for mode in modes]
    for part, bright, number in itertools.product(("train", "test"), (False, True), range(len(kinds))):
        suffix, mode = kinds[number]
        file = root / part / ("bright" if bright else "plain") / f"{number} {mode.replace(';', '')}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        image = picture(mode, 2 * number + bright + 100 * (part == "test"), bright)
        image.save(file, **({"exif": exif} if suffix == "jpg" else {}))
    data = ImageFolder(name="kinds", root=str(root), store_size=20, crop=0.875)
    splits = make_splits(data.decode(), val_share=0.25, seed=0, folder=store)
    logits = make_bundle(splits, folder)
    return root, folder, logits, splits


def test_files_of_every_kind_become_what_was_measured(
    photographed: tuple[Path, Path, np.ndarray, Splits], capsys: pytest.CaptureFixture[str]
) -> None:
    root, folder, logits, splits = photographed
    assert splits.white == 4095
    _, said = verified(folder, capsys)
    assert "16 original files become, pixel for pixel, what was measured" in said
    names = sorted(map(str, (root / "test").rglob("*.*")), key=lambda name: ("/plain/" in name, name))
    done = run(folder, *names)
    assert (done.stderr, done.returncode) == ("", 0)
    found = [line.rpartition(": ")[2].split(" (")[0] for line in done.stdout.splitlines()]
    assert found == [splits.classes[best] for best in logits.argmax(1)]


def test_files_that_would_become_other_pixels_are_found_out(
    photographed: tuple[Path, Path, np.ndarray, Splits], tmp_path: Path
) -> None:
    changed = shutil.copytree(photographed[1], tmp_path / "changed")
    about = json.loads((changed / "bundle.json").read_text())
    (changed / "bundle.json").write_text(json.dumps(about | {"form": about["form"] | {"white": 65_535}}))
    write_manifest(changed)
    with pytest.raises(
        BitsweepError, match=r"\d of 16 original files become other pixels than were measured, by up to"
    ):
        bundle.verify(changed, here=True)


def test_other_pixels_for_the_network_are_found_out(made: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(made, tmp_path / "changed")
    about = json.loads((changed / "bundle.json").read_text())
    (changed / "bundle.json").write_text(json.dumps(about | {"mean": [0.9], "std": [-0.1]}))
    write_manifest(changed)
    with pytest.raises(BitsweepError, match="the recorded predictions did not come out"):
        bundle.verify(changed, here=True)


@pytest.mark.slow
def test_one_flipped_bit_anywhere_is_noticed_before_anything_runs(
    photographed: tuple[Path, Path, np.ndarray, Splits], tmp_path: Path
) -> None:
    changed = shutil.copytree(photographed[1], tmp_path / "changed")
    rng = np.random.default_rng(0)
    for file in sorted(file for file in changed.rglob("*") if file.is_file()):
        content = file.read_bytes()
        places = range(len(content)) if file.name == "manifest.json" else rng.integers(0, len(content), 3)
        for place in places:
            spoilt = bytearray(content)
            spoilt[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(spoilt)
            with pytest.raises(ValueError, match=r"manifest\.json"):
                check_manifest(changed)
        with pytest.raises(BitsweepError, match=r"nothing of it was run: make it again with bitsweep export"):
            bundle.verify(changed, here=True)
        if file.name == "model.onnx":
            done = run(changed, "--verify")
            assert (done.returncode, done.stderr.count("\n")) == (1, 1)
            assert "model.onnx: missing, or not as written down" in done.stderr
        file.write_bytes(content)
    check_manifest(changed)


@pytest.mark.parametrize("name", ["/etc/hostname", "../outside"])
def test_a_manifest_reaches_nothing_outside(name: str, made: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(made, tmp_path / "changed")
    hashes = json.loads((changed / "manifest.json").read_text())
    (changed / "manifest.json").write_text(json.dumps(dict(sorted({**hashes, name: ""}.items())), indent=2) + "\n")
    with pytest.raises(BitsweepError, match=r"manifest\.json is not as it was written"):
        bundle.verify(changed, here=True)


def test_other_logits_of_the_same_classes_are_found_out(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A float32 network a hundred-thousandth off, and one of 2 %."""
    folder = shutil.copytree(made, tmp_path / "bundle")
    recorded = dict(np.load(made / "recorded.npz"))
    for scale in (1 + 1e-5, 1.02):
        np.savez_compressed(folder / "recorded.npz", **(recorded | {"logits": recorded["logits"] * scale}))
        write_manifest(folder)
        if scale < 1.01:
            assert "SQNR 100.0 dB" in verified(folder, capsys)[1]
        else:
            with pytest.raises(BitsweepError, match=r"came out, but other logits: SQNR 34\.2 dB"):
                verified(folder, capsys)


def test_what_is_not_in_the_manifest_is_not_run(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = shutil.copytree(made, tmp_path / "changed")
    (changed / "numpy.py").write_text("raise SystemExit('ran')")
    before, said = verified(changed, capsys)
    assert "not in the manifest.json, left out: numpy.py" in before
    assert said.startswith("16 of 16")
    (changed / "engine.py").write_text((changed / "engine.py").read_text() + "# mine\n")
    write_manifest(changed)
    with pytest.raises(BitsweepError, match="the bundle does not run here"):  # now that it is listed, numpy.py is run
        bundle.verify(changed, here=True)
    assert "not the programs of this bitsweep" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["--index-url https://example.org", "numpy @ https://example.org/numpy.whl", "-e ."])
def test_requirements_are_releases(line: str, made: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(made, tmp_path / "changed")
    (changed / "requirements.txt").write_text(f"{line}\n")
    write_manifest(changed)
    with pytest.raises(BitsweepError, match="which is no NAME==VERSION: not installed"):
        bundle.verify(changed, here=False)


def test_rows_of_a_table_are_not_pictures(made: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(made, tmp_path / "changed")
    about = json.loads((changed / "bundle.json").read_text())
    (changed / "bundle.json").write_text(json.dumps(about | {"pictures": False}))
    done = run(changed, "picture.png")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("this network reads rows of a table")


@pytest.mark.parametrize("lacking", ["cpu", "backend", "requirements"])
def test_facts_that_are_lacking_are_named(lacking: str, made: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(made, tmp_path / "changed")
    about = json.loads((changed / "bundle.json").read_text())
    del about[lacking]
    (changed / "bundle.json").write_text(json.dumps(about))
    write_manifest(changed)
    with pytest.raises(UsageError, match=f"bundle.json lacks {lacking}; make it again with bitsweep export"):
        bundle.verify(changed, here=True)


@pytest.mark.slow
def test_a_program_of_pytorch_is_read_as_data(
    splits: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bundle(splits, tmp_path, backend="torch")
    assert "as recorded" in verified(tmp_path, capsys)[1]
    program = tmp_path / "program.pt2"
    rewritten(program, lambda sound: sound.update({SAMPLES: pickled(Trap(tmp_path / "trapped"))}))
    write_manifest(tmp_path)
    with pytest.raises(BitsweepError, match="pickled objects, which may run code"):
        bundle.verify(tmp_path, here=True)
    assert not (tmp_path / "trapped").exists()


def test_what_is_no_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no bundle; make one with bitsweep export"):
        bundle.verify(tmp_path, here=True)


def test_what_cannot_be_deployed_is_named(made: Path, splits: Splits, tmp_path: Path) -> None:
    write_facts(cell(backend="reference"), splits, np.zeros((449, 10), np.float32), tmp_path)
    with pytest.raises(UsageError, match="nothing to deploy"):
        bundle.complete(tmp_path)
    about = json.loads((made / "bundle.json").read_text())
    (tmp_path / "bundle.json").write_text(json.dumps(about | {"backend": about["backend"] | {"device": "cuda"}}))
    with pytest.raises(UsageError, match=r"export the cell of backend.device=cpu"):
        bundle.complete(tmp_path)
