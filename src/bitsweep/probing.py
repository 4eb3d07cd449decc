"""Asks a machine that is reached by ssh what it is, and writes that down as a target."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydantic

from bitsweep.config.binding import invalid
from bitsweep.errors import CellFailed, UsageError
from bitsweep.measuring import kit
from bitsweep.runtime.environment import version_of
from bitsweep.targets.ssh import Connection, SshMachine

#: The YAMLs that are found without `--config-dir`.
_CONF = Path(__file__).parent / "conf"
#: Engine -> distribution that runs its artifacts there.
_ENGINES = {"onnxruntime": "onnxruntime", "openvino": "openvino"}


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
        install: engines for which to make an environment there; None to install nothing.

    Yields:
        Lines that say what was found, and what to do.

    Raises:
        BitsweepError: it cannot be reached, or its Python lacks what is needed to describe it.
    """
    if asked.name == "local":
        raise UsageError("--name=local: is this machine; give another name")
    if unknown := sorted(set(install or ()) - _ENGINES.keys()):
        raise UsageError(f"--install {unknown[0]}: choose from {', '.join(_ENGINES)}")
    file = into / "target" / f"{asked.name}.yaml"
    if install is not None:
        packages = dict.fromkeys([*kit.NEEDS, *(_ENGINES[each] for each in install or _ENGINES)])
        named = [f"{package}=={version_of(package)}" for package in packages if version_of(package) != "absent"]
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
    for engine, package in _ENGINES.items():
        there, here = found["versions"][package], version_of(package)
        if there == here:
            yield f"{engine} {there}: as here"
        else:
            yield f"{engine}: {there} there, {here} here; cells of backend={engine} need {package}=={here} there"
    place = "" if into.resolve() == _CONF.resolve() else f" --config-dir {into}"
    yield f"wrote {file}; measure there with:{place} target={asked.name}"


def _described(asked: Asked) -> dict[str, Any]:
    """What the machine says of itself, by the code that describes this one."""
    connection = Connection(_target(asked))
    with tempfile.TemporaryDirectory() as scratch:
        part = kit.code(Path(scratch))
        connection.send(Path(scratch) / "parts" / part, f"parts/{part}")
        said = connection.run(kit.PROGRAM, ["--describe", *kit.NEEDS, *_ENGINES.values()], code=part)
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
