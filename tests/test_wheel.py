"""The wheel, installed into a new environment: one's own network and images are measured in an empty folder."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

Command = Callable[..., str]


@pytest.fixture(scope="module")
def bitsweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed command. Other packages are those of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=unwanted)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheels = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, source]
    subprocess.run([*pip, *wheels], check=True, capture_output=True)
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python, (wheel,) = environment / "bin" / "python", folder.glob("*.whl")
    subprocess.run(
        [*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True, capture_output=True
    )
    (packages,) = environment.glob("lib/python*/site-packages")
    outer = [place for place in sys.path if place.endswith("site-packages")]
    (packages / "outer.pth").write_text("\n".join(outer))
    return environment / "bin" / "bitsweep"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, bitsweep: Path) -> Path:
    """A folder with images of two classes, and what `bitsweep init` writes."""
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("place")
    data = load_digits(n_class=2)
    for number, (image, label) in enumerate(zip(data.images, data.target, strict=True)):
        file = folder / "images" / f"digit {label}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype("uint8")).save(file)
    written = run(bitsweep, "init", place=folder)
    assert {"nets.py", "conf/model/mine.yaml", "conf/dataset/mine.yaml", "conf/sweep/mine.yaml"} <= set(written.split())
    return folder


def run(command: Path, *words: str, place: Path, **environment: str) -> str:
    done = subprocess.run(
        [command, *words], cwd=place, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_first_configuration_runs(bitsweep: Path, place: Path) -> None:
    words = ["model.image_size=16", "dataset.store_size=16", "train=smoke", "protocol=smoke"]
    told = run(bitsweep, "run", "--config-dir", "conf", "sweep=mine", *words, place=place)
    assert "finished  mine-none-fp32-onnxruntime-mine" in told
    assert "finished  mine-ptq-int8-onnxruntime-mine" in told
    assert (place / "mlflow.db").exists()


def test_files_of_ones_own_are_named_in_the_command(bitsweep: Path, place: Path) -> None:
    (place / "mine.py").write_text("from nets import MyNet\n\n\nclass Other(MyNet):\n    pass\n")
    own = ["model=own", "model.factory=mine.py:Other", "dataset=image_folder", "dataset.root=images", "plan=true"]
    assert "2 cells: 2 run" in run(bitsweep, "run", "-m", *own, "precision=fp32,int8", place=place)
    searched = ["hydra.searchpath=[file://conf]", "model=mine", "dataset=mine", "plan=true"]
    assert "run    mine-ptq-int8-onnxruntime-mine" in run(bitsweep, "run", *searched, place=place)


@pytest.mark.parametrize(
    ("line", "choices"),
    [
        ("bitsweep ", {"init", "run", "report", "ui", "export", "verify"}),
        ("bitsweep run precision=int", {"precision=int8", "precision=int4"}),
        ("bitsweep run model=own model.fac", {"model.factory="}),
    ],
)
def test_a_shell_completes(line: str, choices: set[str], bitsweep: Path, place: Path) -> None:
    told = run(bitsweep, "-sc", "query=bash", place=place, COMP_LINE=line, COMP_POINT=str(len(line)))
    assert choices <= set(told.split())
