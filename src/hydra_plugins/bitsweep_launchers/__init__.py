"""Launchers of jobs on a cluster, where Hydra looks for plug-ins: a job that is lost takes no other with it."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.search_path_plugin import SearchPathPlugin


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

        def __init__(self, submitit_folder: str, parameters: Mapping[str, Any]) -> None:
            """Note how jobs are submitted.

            Args:
                submitit_folder: of their logs.
                parameters: as submitit's executors name them.
            """
            super().__init__(submitit_folder=submitit_folder, parameters=parameters)

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
            """Submit all jobs at once, and wait for each."""
            import submitit

            executor = submitit.AutoExecutor(cluster=self._EXECUTOR, folder=self.params["submitit_folder"])
            executor.update_parameters(**self.params["parameters"])
            numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
            jobs = executor.map_array(
                self,
                [list(overrides) for overrides in job_overrides],
                ["hydra.sweep.dir" for _ in numbers],
                list(numbers),
                [f"job_id_for_{number}" for number in numbers],
                [Singleton.get_state() for _ in numbers],
            )
            try:
                return [_answer(job) for job in jobs]
            except BaseException:  # nobody waits for what they find any more
                for job in jobs:
                    job.cancel(check=False)
                raise

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
