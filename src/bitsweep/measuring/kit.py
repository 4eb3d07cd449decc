"""A folder that measures an artifact on another machine: its files, images, and what of this project that needs.

kit.json            parts, the program to run, how many images it takes, what it leaves, and parts of this job alone
parts/HASH/...      what does not change with every job: code, artifacts, images; each is sent once
job/request.json    what to measure
"""

import ast
import hashlib
import importlib.util
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bitsweep.config.backend import Backend
from bitsweep.config.target import Target
from bitsweep.measuring.accuracy import Material
from bitsweep.measuring.passes import Subject
from bitsweep.results import LATENCY_SAMPLES, Array, Pixels, Shape
from bitsweep.runtime.environment import release_of
from bitsweep.runtime.fingerprint import settings
from bitsweep.runtime.store import MANIFEST

#: What is run there.
PROGRAM = "bitsweep.measuring.on_device"
#: What that needs besides the engine.
NEEDS = ("numpy", "psutil")
#: Files of its results.
RESULTS = ("test.npy", "validation.npy", "probe.npy", LATENCY_SAMPLES, "notes.json")
#: Stored images that are copied at a time.
_BLOCK = 512


def write_kit(folder: Path, subject: Subject, material: Material, *, input_shape: Shape, probe: Path | None) -> None:
    """Write all that a target needs to measure an artifact.

    Args:
        folder: an empty one.
        probe: folder with an artifact whose sums may saturate, and its images ``probe.npy``.
    """
    job = folder / "job"
    (job / "results").mkdir(parents=True)
    parts = {"code": code(folder, subject.backend), "artifact": _copied(folder, subject.artifact)}
    if subject.twin != subject.artifact:
        parts["twin"] = _copied(folder, subject.twin)
    if probe:
        parts["probe"] = _copied(folder, probe)
        shutil.copyfile(probe / "probe.npy", job / "probe.npy")
    splits, validation_N = material.splits, material.validation_N
    images = {"test": _images(folder, splits.test.images, np.arange(len(splits.test)))}
    if len(validation_N):
        images["validation"] = _images(folder, splits.val.images, validation_N)
    place = {name: f"../../parts/{part}" for name, part in parts.items()}
    request = {
        "artifacts": {name: path for name, path in place.items() if name != "code"},
        "images": {name: f"../../parts/{part}/images.npy" for name, part in images.items()},
        "form": {"input_shape": input_shape, "mean_C": splits.mean_C, "std_C": splits.std_C, "bgr": splits.bgr},
        "threads": subject.threads,
        "machine": _machine(subject.target),
        "backend": settings(subject.backend),
        "protocol": asdict(subject.protocol),
        "requirements": requirements(subject.backend),
    }
    (job / "request.json").write_text(json.dumps(request))
    steps = len(splits.test) + len(validation_N)
    about = {
        "program": PROGRAM, "code": parts["code"], "parts": sorted({*parts.values(), *images.values()}),
        "images": steps, "results": RESULTS, "used_once": [parts["artifact"]] if "twin" in parts else [],
    }  # fmt: skip
    (folder / "kit.json").write_text(json.dumps(about))


def _machine(target: Target) -> dict[str, Any]:
    """What a machine has to be like, for its figures to be those of a target."""
    cpu = target.cpu
    return {"model": cpu.model, "architecture": cpu.architecture, "isa": cpu.isa, "cores": target.cores}


def requirements(backend: Backend) -> dict[str, str]:
    """Distributions that measuring an engine's artifacts needs, in the versions that are here."""
    return {name: release_of(name) for name in (*NEEDS, *backend.deploy_needs)}


def code(folder: Path, backend: Backend | None = None) -> str:
    """Write the code that runs on the other machine as a part of a kit, and return the part's name.

    Args:
        backend: whose artifacts it runs; none where it only describes the machine.
    """
    files = dict(_modules(PROGRAM))
    engine = (backend.deploy_module, *backend.deploy_with) if backend else ()
    for number, module in enumerate(engine):
        name = "engine" if number == 0 else module.rpartition(".")[2]
        files[f"{name}.py"] = _source(module)
    return _part(folder, {name: file.read_bytes() for name, file in files.items()})


def _modules(name: str) -> Iterator[tuple[str, Path]]:
    """A module of this project and all that it imports of it, at whatever time: file name and source."""
    todo, seen = [name], set[str]()
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        todo += [package] if (package := module.rpartition(".")[0]) else []
        source = _source(module)
        if source.name == "__init__.py":
            yield f"{module.replace('.', '/')}/__init__.py", source
        else:
            yield f"{module.replace('.', '/')}.py", source
            todo += _imported(ast.parse(source.read_text()).body)


def _imported(nodes: list[ast.stmt]) -> Iterator[str]:
    """Modules of this project that statements import, but for those that type checkers alone read."""
    stack: list[ast.AST] = list(nodes)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "bitsweep":
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from [found for found in inner if _is_module(found)] or [str(node.module)]
        stack += ast.iter_child_nodes(node)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # what it would be in is no package
        return False


def _source(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    assert spec and spec.origin, module
    return Path(spec.origin)


def _copied(folder: Path, artifact: Path) -> str:
    """The files of an artifact as a part."""
    files = (file for file in artifact.rglob("*") if file.is_file() and file.name != MANIFEST)
    return _part(folder, {file.relative_to(artifact).as_posix(): file.read_bytes() for file in files})


def _part(folder: Path, files: dict[str, bytes]) -> str:
    """Write files as a part, whose name is the hash of them."""
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name} {len(content)} ".encode() + content)
    part = digest.hexdigest()[:32]
    for name, content in files.items():
        (file := folder / "parts" / part / name).parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return part


def _images(folder: Path, stored: Pixels, chosen_N: Array) -> str:
    """Stored images as a part, a block at a time."""
    file = folder / "parts" / "new" / "images.npy"
    file.parent.mkdir(parents=True)
    shape = (len(chosen_N), *stored.shape[1:])
    written: Any = np.lib.format.open_memmap(file, mode="w+", dtype=stored.dtype, shape=shape)
    digest = hashlib.sha256(f"{shape} {stored.dtype}".encode())
    for start in range(0, len(chosen_N), _BLOCK):
        block = np.ascontiguousarray(stored[chosen_N[start : start + _BLOCK]])
        written[start : start + len(block)] = block
        digest.update(block.tobytes())
    written.flush()
    part = digest.hexdigest()[:32]
    if (known := folder / "parts" / part).exists():
        shutil.rmtree(file.parent)
    else:
        file.parent.rename(known)
    return part
