"""A folder that runs a measured artifact anywhere: the file itself, its preprocessing and labels, and a short program.

What it needs of a cell is kept in MLflow when the cell is logged, so that a bundle can be made from there alone.
"""

import importlib.resources
import json
import platform
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np

from bitsweep.cell import Cell
from bitsweep.errors import BitsweepError, UsageError
from bitsweep.results import Array, Splits
from bitsweep.runtime.environment import current_cpu, physical_cores, version_of
from bitsweep.runtime.fingerprint import settings

#: What every bundle imports, whatever runs its artifact.
_NEEDS = ("numpy", "pillow")
#: Test images whose logits are recorded.
RECORDED = 16


def write_facts(cell: Cell, splits: Splits, logits_NK: Array, folder: Path) -> None:
    """Write what a bundle needs to know of a cell: ``bundle.json`` and ``recorded.npz``, test images and their logits.

    Args:
        logits_NK: of the test images, by the artifact.
    """
    images = np.asarray(splits.test.images[:RECORDED])
    cpu = current_cpu()
    about = {
        "cell": cell.name,
        "command": cell.command,
        "deploy_module": cell.backend.deploy_module,
        "backend": settings(cell.backend),
        "threads": cell.protocol.threads or physical_cores(),
        "requirements": [f"{package}=={version_of(package)}" for package in (*cell.backend.deploy_needs, *_NEEDS)],
        "image_size": cell.model.image_size,
        "stored_shape": images.shape[1:],
        "crop": getattr(cell.dataset, "crop", 1.0),
        "mean": splits.mean_C,
        "std": splits.std_C,
        "classes": splits.classes,
        "scheme": str(cell.scheme),
        "scheme_why": cell.scheme.why,
        "cpu": {"model": cpu.model, "isa": cpu.isa},
    }
    (folder / "bundle.json").write_text(json.dumps(about, indent=2))
    np.savez_compressed(folder / "recorded.npz", images=images, logits=logits_NK[:RECORDED])


def complete(folder: Path) -> None:
    """Add to a folder with an artifact and its facts the program that runs it, its requirements, and a readme.

    Raises:
        UsageError: the backend's artifacts cannot run without this project.
    """
    about = _facts(folder)
    if not about["deploy_module"]:
        raise UsageError(f"{about['cell']}: its backend has nothing to deploy; export a cell of backend=onnxruntime")
    if about["backend"].get("device") == "cuda":
        raise UsageError(f"{about['cell']}: programs for a GPU are not written; export the cell of backend.device=cpu")
    package, _, _ = about["deploy_module"].rpartition(".")
    for source, name in ((package, "deploy"), (__package__, "classify")):
        program = importlib.resources.files(source) / f"{name}.py"
        (folder / f"{'engine' if name == 'deploy' else name}.py").write_text(program.read_text())
    (folder / "requirements.txt").write_text("\n".join(about["requirements"]) + "\n")
    (folder / "README.md").write_text(_readme(about))


def verify(folder: Path, *, here: bool) -> str:
    """Run a bundle on its recorded images, in a new environment with its requirements alone.

    Args:
        here: in the present environment instead.

    Returns:
        What the bundle says of the comparison.

    Raises:
        UsageError: the folder is no bundle.
        BitsweepError: the requirements cannot be installed, or the recorded predictions do not come out.
    """
    about = _facts(folder)
    if not (folder / "classify.py").exists():
        raise UsageError(f"{folder}: holds no classify.py; make the bundle again with bitsweep export")
    command = [str((folder / "classify.py").resolve()), "--verify"]
    if here:
        said = _run([sys.executable, *command], "the bundle does not run here")
    else:
        with tempfile.TemporaryDirectory() as scratch:
            venv.create(scratch, with_pip=True)
            python = str(Path(scratch) / ("Scripts" if platform.system() == "Windows" else "bin") / "python")
            needs = [python, "-m", "pip", "install", "--quiet", "-r", str(folder / "requirements.txt")]
            _run(needs, f"the requirements of {folder} cannot be installed")
            said = _run([python, *command], "the bundle does not do what was recorded")
    isa = current_cpu().isa
    if isa != about["cpu"]["isa"]:
        said += f"\nmeasured on a CPU with {about['cpu']['isa']}, this one has {isa}: speed and rounding may differ"
    return said


def _run(command: list[str], what_failed: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise BitsweepError(f"{what_failed}: {' '.join(last)}")
    return done.stdout.strip()


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / "bundle.json").read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder}: no bundle ({error}); make one with bitsweep export RUN_ID {folder}") from error
    return facts


def _readme(about: dict[str, Any]) -> str:
    why = f" ({about['scheme_why']})" if about["scheme_why"] else ""
    return f"""# {about["cell"]}

    pip install -r requirements.txt
    python classify.py PICTURE...
    python classify.py --verify      # are the recorded predictions reproduced?

Made by `{about["command"]}` and measured on {about["cpu"]["model"]} ({about["cpu"]["isa"]}).
{about["scheme"]}{why}.
"""
