"""Launchers of jobs on a cluster, where Hydra looks for plug-ins: a job that is lost takes no other with it."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.search_path_plugin import SearchPathPlugin

from bitsweep.stages import ARTIFACT


class OwnLaunchers(SearchPathPlugin):  # type: ignore[misc]
    """Lets the YAMLs of this package stand for launchers, without the schemas of others that have the same names.

    Hydra would merge the two, and warn of it; and it loads those schemas twice, so that jobs cannot be pickled.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Take the schemas away, once all plug-ins have been loaded."""
        launchers = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {})
        for name in ("joblib", "ray"):
            launchers.pop(f"{name}.yaml", None)


with contextlib.suppress(ImportError):  # an extra, without which nobody asks for these classes
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher

    class _Submitted(BaseSubmititLauncher):  # type: ignore[misc]
        """Jobs of submitit, each with an answer of its own.

        The launcher that comes with Hydra gives up all jobs as soon as one is lost, while the others go on.
        """

        _EXECUTOR: ClassVar[str]

        def __init__(
            self, submitit_folder: str, known_jobs: str, parameters: Mapping[str, Any], lowering: Mapping[str, Any]
        ) -> None:
            """Note how jobs are submitted.

            Args:
                submitit_folder: of their logs.
                known_jobs: folder that tells which jobs were submitted and not yet answered.
                parameters: as submitit's executors name them.
                lowering: other values for jobs that compress and lower, and measure nothing; None for none.
            """
            super().__init__(
                submitit_folder=submitit_folder, known_jobs=known_jobs, parameters=parameters, lowering=lowering
            )

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
            """Submit all jobs at once, but those that an earlier command has, and wait for each."""
            from bitsweep.submitted import KnownJobs, watch_the_queue

            watch_the_queue()
            folder = Path(self.params["submitit_folder"])
            known = KnownJobs(Path(self.params["known_jobs"]), self._EXECUTOR)
            jobs = {number: job for number, told in enumerate(job_overrides) if (job := known.attach(told))}
            if jobs:
                print(f"waiting for {len(jobs)} of the jobs that an earlier command submitted", flush=True)
            new = [number for number in range(len(job_overrides)) if number not in jobs]
            for number, job in zip(new, self._submit(folder, job_overrides, new, initial_job_idx), strict=True):
                known.remember(job_overrides[number], folder, job)
                jobs[number] = job
            answers = []
            try:
                for number, told in enumerate(job_overrides):
                    answers.append(_answer(jobs[number]))
                    known.forget(told)
            except BaseException:  # nobody waits for what they find any more
                for job in jobs.values():
                    job.cancel(check=False)
                raise
            return answers

        def _submit(
            self, folder: Path, job_overrides: Sequence[Sequence[str]], numbers: Sequence[int], start: int
        ) -> list[Any]:
            import submitit

            if not numbers:
                return []
            lowers = f"stage={ARTIFACT.name}" in job_overrides[numbers[0]]
            parameters = self.params["parameters"] | (self.params["lowering"] if lowers else {})
            executor = submitit.AutoExecutor(cluster=self._EXECUTOR, folder=folder)
            executor.update_parameters(**{name: value for name, value in parameters.items() if value is not None})
            jobs: list[Any] = executor.map_array(
                self,
                [list(job_overrides[number]) for number in numbers],
                ["hydra.sweep.dir" for _ in numbers],
                [start + number for number in numbers],
                [f"job_id_for_{start + number}" for number in numbers],
                [Singleton.get_state() for _ in numbers],
            )
            return jobs

    class LocalLauncher(_Submitted):
        """Jobs are processes of this machine."""

        _EXECUTOR = "local"

    class SlurmLauncher(_Submitted):
        """Jobs are those of Slurm."""

        _EXECUTOR = "slurm"


def _answer(job: Any) -> JobReturn:
    try:
        return job.results()[0]
    except Exception as error:  # of a job that was killed or cancelled, or that could not be unpickled
        lost = JobReturn(status=JobStatus.FAILED)
        lost.return_value = error
        return lost
