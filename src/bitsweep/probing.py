"""Asks a machine that is reached by ssh what it is, and writes that down as a target."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydantic

from bitsweep.backends.executorch.backend import ExecuTorch
from bitsweep.backends.litert.backend import LiteRt
from bitsweep.backends.onnxruntime.backend import OnnxRuntime
from bitsweep.backends.openvino.backend import OpenVino
from bitsweep.config.backend import Backend
from bitsweep.config.binding import invalid
from bitsweep.errors import CellFailed, MissingPackage, UsageError
from bitsweep.measuring import kit
from bitsweep.runtime.environment import release_of, version_of
from bitsweep.targets.ssh import Connection, SshMachine

#: The YAMLs that are found without `--config-dir`.
_CONF = Path(__file__).parent / "conf"
#: Engines for other machines than this one.
_ENGINES: dict[str, type[Backend]] = {
    "onnxruntime": OnnxRuntime, "openvino": OpenVino, "litert": LiteRt, "executorch": ExecuTorch,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How to reach a machine, see `bitsweep.targets.ssh.SshMachine`."""

    host: str
    name: str
    python: str
    folder: str
    options: Sequence[str]


def probe(asked: Asked, *, into: Path, install: Sequence[str] | None) -> Iterator[str]:
    """Ask a machine what it is, and write ``target/NAME.yaml``.

    Args:
        into: folder of YAMLs.
        install: engines for which to make an environment there, empty for all that need no PyTorch; None to install
            nothing.

    Yields:
        Lines that say what was found, and what to do.

    Raises:
        BitsweepError: it cannot be reached, or its Python lacks what is needed to describe it.
    """
    if asked.name == "local":
        raise UsageError("--name=local: is this machine; give another name")
    for name in install or ():
        if name not in _ENGINES:
            raise UsageError(f"--install {name}: choose from {', '.join(_ENGINES)}")
        if not _is_here(engine := _ENGINES[name]):
            missing = MissingPackage(engine.package, engine.extra)
            raise UsageError(f"--install {name}: its files are made on this machine, where {missing}")
    file = into / "target" / f"{asked.name}.yaml"
    if install is not None:
        engines = [_ENGINES[name] for name in install] or [each for each in _ENGINES.values() if _is_small(each)]
        packages = dict.fromkeys([*kit.NEEDS, *(package for each in engines for package in each.deploy_needs)])
        named = [f"{package}=={release_of(package)}" for package in packages]
        yield f"installing {', '.join(named)} into {asked.folder}/environment there"
        asked = replace(asked, python=Connection(_target(asked)).install(named))
    found = _described(asked)
    cpu = found["cpu"]
    target = _target(asked, cpu, found["physical_cores"])
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_yaml(target))
    except OSError as error:
        raise UsageError(f"--config-dir={into}: cannot be written ({error.strerror}); name another folder") from error
    yield f"{cpu['model']} ({target.cpu.isa}), {target.cores} cores, {found['platform']}, Python {found['python']}"
    for name, engine in _ENGINES.items():
        if _is_here(engine):
            yield f"{name}: {_compared(engine, found['versions'])}"
    place = "" if into.resolve() == _CONF.resolve() else f" --config-dir {into}"
    yield f"wrote {file}; measure there with:{place} target={asked.name}"


def _is_here(engine: type[Backend]) -> bool:
    return all(version_of(package) != "absent" for package in (engine.package, *engine.deploy_needs))


def _is_small(engine: type[Backend]) -> bool:
    return _is_here(engine) and "torch" not in engine.deploy_needs


def _compared(engine: type[Backend], there: dict[str, str]) -> str:
    """What an engine's cells need on another machine, whose versions of distributions are given."""
    here = {package: release_of(package) for package in engine.deploy_needs}
    other = [f"{package} is {there[package]} there" for package in here if there[package] != here[package]]
    needed = " ".join(f"{package}=={version}" for package, version in here.items())
    return f"{', '.join(other)}; its cells need {needed}" if other else f"{needed}, as here"


def _described(asked: Asked) -> dict[str, Any]:
    """What the machine says of itself, by the code that describes this one."""
    connection = Connection(_target(asked))
    needs = [package for engine in _ENGINES.values() for package in engine.deploy_needs]
    with tempfile.TemporaryDirectory() as scratch:
        part = kit.code(Path(scratch))
        connection.send(Path(scratch) / "parts" / part, f"parts/{part}")
        said = connection.run(kit.PROGRAM, ["--describe", *kit.NEEDS, *needs], code=part)
    try:
        found: dict[str, Any] = json.loads(said.splitlines()[-1])
        _target(asked, found["cpu"], found["physical_cores"])
    except (ValueError, LookupError, TypeError) as error:
        raise CellFailed(f"{asked.host} does not describe itself: {error}") from error
    return found


def _target(asked: Asked, cpu: dict[str, Any] | None = None, cores: int = 1) -> SshMachine:
    """The machine, as far as it is known."""
    cpu = cpu or {"model": "", "architecture": "", "flags": []}
    try:
        return SshMachine(
            name=asked.name, host=asked.host, options=tuple(asked.options), python=asked.python, folder=asked.folder,
            cpu_model=cpu["model"], architecture=cpu["architecture"], flags=tuple(cpu["flags"]), physical_cores=cores,
        )  # fmt: skip
    except pydantic.ValidationError as error:
        raise invalid(SshMachine, error) from None


def _yaml(target: SshMachine) -> str:
    """A target as a YAML, whose values are written as JSON."""
    values = {
        "_target_": f"{SshMachine.__module__}.{SshMachine.__qualname__}",
        "name": target.name, "host": target.host, "options": list(target.options), "python": target.python,
        "folder": target.folder, "cpu_model": target.cpu_model, "architecture": target.architecture,
        "flags": sorted(target.flags), "physical_cores": target.physical_cores,
    }  # fmt: skip
    lines = [f"{name}: {json.dumps(value)}" for name, value in values.items()]
    return "\n".join(["# Written by `bitsweep probe`: what is made for this machine is measured there.", *lines, ""])
