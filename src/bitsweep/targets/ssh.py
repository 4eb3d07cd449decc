"""A machine that is reached by ssh, and measures what was made for it here."""

import contextlib
import json
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import uuid
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, final

from bitsweep.config.configurable import NOT_IN_KEYS, Count, Several, configurable, spelt
from bitsweep.config.target import Target
from bitsweep.errors import CellFailed, UnreachableTarget, UsageError
from bitsweep.runtime.environment import Cpu
from bitsweep.runtime.progress import STEP, Progress
from bitsweep.runtime.silence import EndedBySilence, Heard

#: Options of every connection: nobody is there to be asked for a password or about a new host.
_OPTIONS = ("-oBatchMode=yes", "-oConnectTimeout=20", "-oServerAliveInterval=15", "-oServerAliveCountMax=3", "-T")
#: Seconds after which a command that neither says nor takes anything hangs. What measures is never silent for long.
_SILENT_S = 300.0
#: The same of what only removes files, whose machine may be gone, and of what installs packages.
_REMOVING_S, _INSTALLING_S = 30.0, 3600.0
#: Exit code of ssh where it is the connection that failed.
_NO_CONNECTION = 255
#: How a full disk is told: by the system, or by tar or NumPy, which tell no more.
_FULL = re.compile(r"No space left|Disk quota exceeded|Wrote only \d+ of \d+ bytes|\d+ requested and \d+ written")
#: How ssh tells that another key is known of a host.
_OTHER_KEY = "REMOTE HOST IDENTIFICATION HAS CHANGED"
#: What to do where what a target names runs no Python.
_INTERPRETER = "set target.python to its interpreter (bitsweep probe --python)"
#: What removes jobs that were cut off, and what no job has needed for long.
_TIDY = "; ".join(
    f"find {folder} -mindepth 1 -maxdepth 1 -mtime +{days} -exec rm -rf {{}} +"
    for folder, days in (("jobs", 1), ("parts", 30))
)
#: The last file of every copy, by which one that was cut off is known.
_LAST = ".complete"
#: The line after which a command's own output begins: a shell there may greet before.
_BEGINS = "bitsweep-begins"


@final
@configurable
class SshMachine(Target):
    """A machine that is reached by ssh. ``bitsweep probe`` writes its YAML.

    Attributes:
        host: as ssh takes it, such as ``user@board``; its key must be known, and no password be asked for.
        options: further options of ssh, such as ``[-p, "2222"]``.
        python: the interpreter there, with NumPy, psutil and the engine: a name, or a path from ``/`` or ``~/`` on.
        folder: where files are kept there: from the home folder on, or a path from ``/`` or ``~/`` on.
        cpu_model, architecture, flags: its processor.
        physical_cores: as many threads does an engine have, unless ``protocol.threads`` says otherwise.
    """

    here: ClassVar[bool] = False

    host: Annotated[str, NOT_IN_KEYS, spelt(r"[A-Za-z0-9_\[][A-Za-z0-9_.@:%\[\]-]*", "a machine, e.g. user@board")]
    options: Annotated[Several[str], NOT_IN_KEYS] = ()
    python: Annotated[str, NOT_IN_KEYS, spelt(r"(?s).*\S.*", "an interpreter, e.g. python3")] = "python3"
    folder: Annotated[str, NOT_IN_KEYS, spelt(r"(?s).*\S.*", "a folder, e.g. .cache/bitsweep")] = ".cache/bitsweep"
    cpu_model: str
    architecture: str
    flags: tuple[str, ...]
    physical_cores: Count

    @property
    def cpu(self) -> Cpu:
        """As it was when it was probed."""
        return Cpu(model=self.cpu_model, architecture=self.architecture, flags=frozenset(self.flags))

    @property
    def cores(self) -> int:
        """As when it was probed."""
        return self.physical_cores

    def measure(self, kit: Path, results: Path, progress: Progress) -> None:
        """Send what is not there yet, run it, and fetch the results."""
        about = json.loads((kit / "kit.json").read_text())
        connection, job, used_up = Connection(self), f"jobs/{uuid.uuid4().hex}", ()
        try:
            connection.send(kit / "job", job)  # first: it names the parts that others must leave
            for part in about["parts"]:
                connection.send(kit / "parts" / part, f"parts/{part}")
            with progress(f"{self.name}: images", about["images"]) as advance:
                done = 0

                def seen(line: bytes) -> None:
                    nonlocal done
                    if line.startswith(STEP.encode()) and line[len(STEP) :].strip().isdigit():
                        now = int(line[len(STEP) :])
                        advance(now - done)
                        done = now

                connection.run(about["program"], [job], code=about["code"], seen=seen)
            connection.fetch(f"{job}/results", results, wanted=about["results"])
            used_up = about["used_once"]
        except UnreachableTarget as error:
            raise UnreachableTarget(f"{error}; the same command goes on from here") from error
        finally:
            connection.remove(job, parts=used_up)


class Connection:
    """Commands on a machine that is reached by ssh."""

    def __init__(self, target: SshMachine) -> None:
        self._target = target

    def send(self, source: Path, name: str) -> None:
        """Copy a folder, unless it is there; a copy that is cut off is none, and of two at once the first stays.

        Raises:
            UnreachableTarget: the machine does not answer.
            CellFailed: it cannot take the files.
        """
        if self._ssh(f"if test -d {name}; then touch {name}; echo there; fi").strip() == b"there":
            return
        new = f"{name}.{uuid.uuid4().hex}"
        whole = f"tar -xf - -C {new} && test -e {new}/{_LAST} && touch {new}"
        publish = f"{{ mv -T {new} {name} || test -d {name}; }}"
        unpack = f"mkdir {new} && {whole} && {publish}; code=$?; rm -rf {new}; exit $code"

        def pack(pipe: Any) -> None:
            with tarfile.open(fileobj=pipe, mode="w|") as archive:
                archive.add(source, arcname=".")
                archive.addfile(tarfile.TarInfo(_LAST))

        self._ssh(unpack, give=pack)

    def run(
        self, program: str, arguments: list[str], *, code: str, seen: Callable[[bytes], None] = lambda line: None
    ) -> bytes:
        """Run a module of the part that has the code; returns what it prints.

        Args:
            arguments: of the program; folders from ``folder`` on.
            seen: called with every line as it is printed.
        """
        words = " ".join(shlex.quote(word) for word in arguments)
        printed = self._ssh(f"PYTHONPATH=parts/{code} exec {self._python} -B -m {program} {words}", seen=seen)
        if not printed.strip():  # every program says how far it is, or what it found
            raise CellFailed(f"{self._where} runs nothing as {self._target.python}: {_INTERPRETER}")
        return printed

    def fetch(self, name: str, folder: Path, *, wanted: Collection[str]) -> None:
        """Copy files of a folder there; nothing but what is wanted is taken, whatever is offered."""
        packed = self._ssh(f"tar -cf - -C {name} .")
        scratch = folder / "results.tar"
        scratch.write_bytes(packed)
        with tarfile.open(scratch) as archive:
            for member in archive:
                file = Path(member.name).name
                if member.isreg() and file in wanted and (source := archive.extractfile(member)):
                    (folder / file).write_bytes(source.read())
        scratch.unlink()

    def remove(self, job: str, *, parts: Sequence[str] = ()) -> None:
        """Delete a job there, and what nobody needs any more; where the machine is gone by now, it stays.

        Args:
            parts: of the job alone, unless another job names them.
        """
        of_others = (f"grep -qs parts/{part} jobs/*/request.json || rm -rf parts/{part}" for part in parts)
        try:
            self._ssh("; ".join([f"rm -rf {job}", *of_others, _TIDY]), silent_s=_REMOVING_S)
        except (UnreachableTarget, CellFailed):
            return

    def install(self, packages: list[str]) -> str:
        """Make an environment of its own there and install packages into it; returns its interpreter."""
        self._ssh(
            f"{self._python} -m venv environment && environment/bin/python -m pip install -q {' '.join(packages)}",
            silent_s=_INSTALLING_S,
        )
        return self._ssh("echo $PWD/environment/bin/python").decode().strip()

    @property
    def _where(self) -> str:
        return f"target={self._target.name} ({self._target.host})"

    @property
    def _python(self) -> str:
        return shell_path(self._target.python)

    def _ssh(
        self,
        command: str,
        *,
        give: Callable[[Any], None] | None = None,
        seen: Callable[[bytes], None] = lambda line: None,
        silent_s: float | None = None,
    ) -> bytes:
        """Run a shell command in the folder there.

        Args:
            give: writes its input to a file.
            seen: called with every line as it is printed.
            silent_s: after so many seconds without a word it hangs.

        Raises:
            UnreachableTarget: there is no connection, or it was lost, or what runs there hangs.
            CellFailed: the command failed.
        """
        target, folder = self._target, shell_path(self._target.folder)
        goes_there = f"mkdir -p {folder}/parts {folder}/jobs && cd {folder}"
        line = f"echo {_BEGINS}; {goes_there} && {{ {command}; }}"
        where = self._where
        # The shell of a user may be one that writes commands otherwise.
        asked = ["ssh", *_OPTIONS, *target.options, "--", target.host, f"exec sh -c {shlex.quote(line)}"]
        if shutil.which("ssh") is None:
            raise UsageError(f"{where}: there is no ssh here; install OpenSSH's client")
        stdin = subprocess.PIPE if give else subprocess.DEVNULL
        silent_s = silent_s or _SILENT_S
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(asked, stdin=stdin, stdout=subprocess.PIPE, stderr=errors) as process,
            EndedBySilence(process, silent_s) as silence,
        ):
            if give and process.stdin:
                with contextlib.suppress(BrokenPipeError):  # why is in what it says
                    give(Heard(process.stdin, silence.heard))
                with contextlib.suppress(BrokenPipeError):  # of what was not yet sent
                    process.stdin.close()
            printed = []
            assert process.stdout
            for each in process.stdout:
                silence.heard()
                if each.rstrip().endswith(_BEGINS.encode()):
                    break
            for each in process.stdout:
                silence.heard()
                printed.append(each)
                seen(each)
            process.wait()
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()
        if process.returncode == 0:
            return b"".join(printed)
        if silence.happened:
            raise UnreachableTarget(
                f"{where} has said nothing for {silent_s:g} s: what runs there hangs, or its network"
            )
        if process.returncode == _NO_CONNECTION:
            raise UnreachableTarget(f"{where} cannot be reached: {no_connection(said, target)}")
        last = why_it_failed(said) or f"exit code {process.returncode}"
        raise CellFailed(f"{where} {_explained(last, target)}")


def shell_path(name: str) -> str:
    """A path as a word for the shell there, which knows the home folder."""
    return f"~/{shlex.quote(name[2:])}" if name.startswith("~/") else shlex.quote(name)


def why_it_failed(said: Sequence[str]) -> str:
    """The line that tells most of what a command printed while it failed: that of a full disk, else the last."""
    lines = [line for line in said if line.strip()]
    return next(filter(_FULL.search, lines), lines[-1] if lines else "")


def no_connection(said: Sequence[str], target: SshMachine) -> str:
    """Why there is none, by what ssh printed, with what to do where that is known."""
    host = shlex.join([*target.options, target.host])
    if not (last := why_it_failed(said).rstrip(".")):
        return "it ended without a word; perhaps what ran there was killed, or took all memory"
    if any(_OTHER_KEY in line for line in said):
        forget = next((line.strip() for line in said if "ssh-keygen" in line), "ssh-keygen -R HOST")
        return (
            f"{last}; its key is another one than before, so that it may be another machine: find out why, then let "
            f"the old key be forgotten ({forget}) and connect once by hand (ssh {host})"
        )
    if "Host key verification failed" in last:
        return f"{last}; its key is not known here: connect once by hand (ssh {host}), and compare the key"
    if "Permission denied" in last:
        return f"{last}; nobody is there to be asked for a password: let it take your key (ssh-copy-id {host})"
    return last


def _explained(last: str, target: SshMachine) -> str:
    """What a last line of another machine means, with what to do."""
    if _FULL.search(last):
        return f"has no space left: {last}; free some of {target.folder} there, or set target.folder to another disk"
    if target.python.removeprefix("~/") in last and ("not found" in last or "No such file" in last):
        return f"has no {target.python}: {_INTERPRETER}"
    if last.startswith("mkdir: "):
        return f"{last}; set target.folder to one that it may write to"
    if "No module named" in last:
        return (
            f"lacks a package ({last.strip()}): install it there, name another interpreter, or let "
            "bitsweep probe --install make one"
        )
    return last
