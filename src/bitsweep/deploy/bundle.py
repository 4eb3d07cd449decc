"""A folder that runs a measured artifact anywhere: the file itself, its preprocessing and labels, and a short program.

What it needs of a cell is kept in MLflow, see `bitsweep.deploy.facts`, so that a bundle can be made from there alone.
"""

import contextlib
import importlib.resources
import json
import platform
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitsweep.deploy.manifest import MANIFEST, check_manifest, write_manifest
from bitsweep.errors import BitsweepError, UsageError
from bitsweep.runtime.environment import current_cpu, version_of
from bitsweep.text import plain

#: The programs of every bundle, besides ``engine.py``, and where they come from.
_PROGRAMS = (
    "bitsweep.deploy.classify",
    "bitsweep.deploy.manifest",
    "bitsweep.data.network_input",
    "bitsweep.data.pixels",
)
#: What ``bundle.json`` holds, at the least, of what is read here.
_FACTS = frozenset(
    {"cell", "command", "deploy_module", "deploy_with", "backend", "requirements", "scheme", "scheme_why", "cpu"}
)
#: What may stand in ``requirements.txt``: no address, no option, nothing but releases.
_REQUIREMENT = re.compile(r"[A-Za-z0-9._-]+(\[[A-Za-z0-9._,-]+\])?==[A-Za-z0-9.+_-]+")


def complete(folder: Path) -> None:
    """Add to a folder with an artifact and its facts the programs that run it, its requirements, a readme, and the hash
    of every file.

    Raises:
        UsageError: the backend's artifacts cannot run without this project.
    """
    about = _facts(folder)
    if not about["deploy_module"]:
        raise UsageError(f"{about['cell']}: its backend has nothing to deploy; export a cell of backend=onnxruntime")
    if about["backend"].get("device") == "cuda":
        raise UsageError(f"{about['cell']}: programs for a GPU are not written; export the cell of backend.device=cpu")
    for name, program in _programs(about).items():
        (folder / name).write_bytes(program)
    (folder / "requirements.txt").write_text("\n".join(about["requirements"]) + "\n")
    (folder / "README.md").write_text(_readme(about))
    write_manifest(folder)


def verify(folder: Path, *, here: bool) -> str:
    """Run a copy of what a bundle's manifest lists on its recorded images and files, in a new environment with its
    requirements alone. What is to be run is printed first.

    Args:
        here: in the present environment instead.

    Returns:
        What the bundle says of the comparison.

    Raises:
        UsageError: the folder is no bundle.
        BitsweepError: it is not as it was written, its requirements cannot be installed, or what was recorded does not
            come out.
    """
    if not (folder / "bundle.json").exists():
        raise UsageError(f"{folder}: no bundle; make one with bitsweep export RUN_ID {folder}")
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "bundle"
        copy.mkdir()
        try:
            names = check_manifest(folder, copy=copy)
        except (OSError, ValueError) as error:
            raise BitsweepError(
                f"{folder}: {error}; nothing of it was run: make it again with bitsweep export"
            ) from error
        about = _facts(copy)
        print(_intention(folder, about, copy, names, here=here), flush=True)
        command = [str(copy / "classify.py"), "--verify"]
        if here:
            said = _run([sys.executable, "-B", *command], "the bundle does not run here")
        else:
            place = Path(scratch) / "environment"
            venv.create(place, with_pip=True)
            python = str(place / ("Scripts" if platform.system() == "Windows" else "bin") / "python")
            needs = [python, "-m", "pip", "install", "--quiet", "-r", str(copy / "requirements.txt")]
            _run(needs, f"the requirements of {folder} cannot be installed")
            said = _run([python, "-s", *command], "the bundle does not do what was recorded")
    isa = current_cpu().isa
    if isa != about["cpu"]["isa"]:
        said += f"\nmeasured on a CPU with {about['cpu']['isa']}, this one has {isa}: speed and rounding may differ"
    return said


def engine_programs(deploy_module: str, deploy_with: Sequence[str]) -> dict[str, bytes]:
    """What loads an engine's artifact without this project: ``engine.py``, and the modules that it imports."""
    modules = {**{module.rpartition(".")[2]: module for module in deploy_with}, "engine": deploy_module}
    return {f"{name}.py": _source(module) for name, module in modules.items()}


def _programs(about: dict[str, Any]) -> dict[str, bytes]:
    """The programs of a bundle, as this project has them."""
    common = {f"{module.rpartition('.')[2]}.py": _source(module) for module in _PROGRAMS}
    return common | engine_programs(about["deploy_module"], about["deploy_with"])


def _source(module: str) -> bytes:
    package, _, name = module.rpartition(".")
    return (importlib.resources.files(package) / f"{name}.py").read_bytes()


def _intention(folder: Path, about: dict[str, Any], copy: Path, names: list[str], *, here: bool) -> str:
    """What verifying runs, and how far that is this project's own.

    Raises:
        BitsweepError: the requirements are more than releases of packages.
    """
    needs = (copy / "requirements.txt").read_text().split("\n")[:-1]
    if odd := [line for line in needs if not _REQUIREMENT.fullmatch(line)]:
        raise BitsweepError(f"{folder}: requirements.txt asks for {odd[0]!r}, which is no NAME==VERSION: not installed")
    programs = sorted(name for name in names if name.endswith(".py"))
    where = "in this environment" if here else f"in a new environment with {', '.join(needs)}"
    text = [f"{folder}: every file is as its {MANIFEST} says; runs a copy of {', '.join(programs)} {where}"]
    own: dict[str, bytes] = {}
    if all(module.startswith("bitsweep.") for module in (about["deploy_module"], *about["deploy_with"])):
        with contextlib.suppress(ImportError, OSError):
            own = _programs(about)
    if foreign := [name for name in programs if (copy / name).read_bytes() != own.get(name)]:
        text.append(f"not the programs of this bitsweep {version_of('bitsweep')}: {', '.join(foreign)}")
    known = {*names, MANIFEST}
    found = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())
    if beside := sorted(name for name in found if name not in known and "__pycache__" not in name):
        text.append(f"not in the {MANIFEST}, left out: {', '.join(beside[:3])}{', ...' if len(beside) > 3 else ''}")
    return "\n".join(text)


def _run(command: list[str], what_failed: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise BitsweepError(f"{what_failed}: {' '.join(last)}")
    return done.stdout.strip()


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / "bundle.json").read_text())
        lacking = sorted(_FACTS - facts.keys())
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"{folder}: no bundle ({error}); make one with bitsweep export RUN_ID {folder}") from error
    if lacking:
        raise UsageError(f"{folder}: bundle.json lacks {', '.join(lacking)}; make it again with bitsweep export")
    return facts


def _readme(about: dict[str, Any]) -> str:
    why = f" ({about['scheme_why']})" if about["scheme_why"] else ""
    return f"""# {plain(about["cell"])}

    pip install -r requirements.txt
    python classify.py PICTURE...
    python classify.py --verify      # are all files as written, and the recorded predictions reproduced?

Measured on {about["cpu"]["model"]} ({about["cpu"]["isa"]}), and made by

    {plain(about["command"])}

{about["scheme"]}{why}.
"""
