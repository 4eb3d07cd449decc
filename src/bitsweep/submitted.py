"""Jobs of submitit that outlive the command which submitted them: they are known by what they were told to do."""

import contextlib
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import submitit
from submitit.local.local import LocalJob
from submitit.slurm.slurm import SlurmInfoWatcher

from bitsweep.runtime.plain_files import write_whole

#: What differs between commands that do the same.
_OF_ONE_COMMAND = "hydra.sweep.dir="
#: States of jobs that will not run any more, as Slurm's queue names them.
_ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT",
}  # fmt: skip
#: Seconds after which Slurm is asked again at the latest.
_ASK_S = 15


class Queue(SlurmInfoWatcher):  # type: ignore[misc]
    """Asks Slurm's queue for the state of jobs, which needs no accounting: a lost job is seen within seconds.

    A job that the queue does not know any more has ended.
    """

    def __init__(self) -> None:
        super().__init__(delay_s=_ASK_S)

    def _make_command(self) -> list[str] | None:
        if not self._registered - self._finished:
            return None
        return ["squeue", "--me", "--array", "--states=all", "--noheader", "--format=%i|%T"]

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        """Job id -> whether it runs, or will, of all jobs that were asked for."""
        text = string.decode() if isinstance(string, bytes) else string
        listed = dict(line.split("|", 1) for line in text.splitlines() if "|" in line)
        alive = {job for job, state in listed.items() if state not in _ENDED}
        return {job: {"JobID": job, "State": "RUNNING" if job in alive else "ENDED"} for job in self._registered}


class KnownJobs:
    """The jobs that a command waits for, in a folder, so that the same command finds them if that one was killed."""

    def __init__(self, folder: Path, executor: str) -> None:
        self._folder, self._executor = folder, executor

    def attach(self, overrides: Sequence[str]) -> Any:
        """The job that was told the same and has not ended; None where there is none."""
        try:
            about = json.loads(self._file(overrides).read_text())
            job = self._job(str(about["folder"]), str(about["id"]))
        except (OSError, ValueError, KeyError, TypeError, psutil.Error):
            return None
        return None if job.done(force_check=True) else job

    def remember(self, overrides: Sequence[str], folder: Path, job: Any) -> None:
        """Write down which job was told something.

        Args:
            folder: of its files, as submitit was told.
        """
        file = self._file(overrides)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps({"folder": str(folder.absolute()), "id": job.job_id}))

    def forget(self, overrides: Sequence[str]) -> None:
        """Nobody needs to find the job any more."""
        self._file(overrides).unlink(missing_ok=True)

    def _file(self, overrides: Sequence[str]) -> Path:
        told = [self._executor, *(word for word in overrides if not word.startswith(_OF_ONE_COMMAND))]
        return self._folder / f"{hashlib.sha256(json.dumps(told).encode()).hexdigest()}.json"

    def _job(self, folder: str, job_id: str) -> Any:
        if self._executor == "slurm":
            return submitit.SlurmJob(folder, job_id)
        return LocalJob(folder, job_id, process=_LocalProcess(int(job_id)))


class _LocalProcess:
    """The process of a job of this machine that another process started, as submitit uses such."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        if "submitit.local._local" not in self._process.cmdline():
            raise psutil.NoSuchProcess(pid)  # the number is that of another one by now

    def poll(self) -> int | None:
        """None while it runs."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE:
                return None
        return 0

    def send_signal(self, signal: int) -> None:
        """Send it a signal, unless it has ended."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.send_signal(signal)


def watch_the_queue() -> None:
    """Let submitit ask Slurm's queue instead of its accounting."""
    submitit.SlurmJob.watcher = Queue()


def most_in_an_array() -> int:
    """How many jobs an array of Slurm may have; as many as one likes where that is not told."""
    told = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False).stdout
    limit = re.search(r"^MaxArraySize\s*=\s*(\d+)", told, re.MULTILINE)
    return max(1, int(limit[1])) if limit else sys.maxsize
