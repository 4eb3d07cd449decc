"""Launchers of jobs, where Hydra looks for plug-ins: a job that is lost takes no other with it."""

import contextlib
import copy
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from bitsweep.composing import compose_all
from bitsweep.stages import ARTIFACT

#: Bytes for the objects of a Ray that a sweep starts; Ray refuses less.
_OBJECT_STORE = 78_643_200
#: Held by a worker of joblib while it is at a job.
_AT_A_JOB = threading.Lock()


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
            answers = []
            try:
                for number, job in self._submit(folder, job_overrides, new, initial_job_idx):
                    known.remember(job_overrides[number], folder, job)
                    jobs[number] = job
                for number, told in enumerate(job_overrides):
                    answers.append(_answer(jobs[number].result))
                    known.forget(told)
            except BaseException:  # nobody waits for what they find any more
                for job in jobs.values():
                    job.cancel(check=False)
                raise
            return answers

        def _submit(
            self, folder: Path, job_overrides: Sequence[Sequence[str]], numbers: Sequence[int], start: int
        ) -> Iterator[tuple[int, Any]]:
            """Number and job of each, in as many arrays as it takes; what may run at once is divided between them."""
            import submitit

            if not numbers:
                return
            lowers = f"stage={ARTIFACT.name}" in job_overrides[numbers[0]]
            parameters = self.params["parameters"] | (self.params["lowering"] if lowers else {})
            arrays = -(-len(numbers) // self._most_in_an_array())
            if arrays > 1 and (at_once := parameters.get("slurm_array_parallelism")):
                parameters["slurm_array_parallelism"] = max(1, at_once // arrays)
            executor = submitit.AutoExecutor(cluster=self._EXECUTOR, folder=folder)
            executor.update_parameters(**{name: value for name, value in parameters.items() if value is not None})
            for first in range(arrays):
                part = numbers[first::arrays]
                jobs: list[Any] = executor.map_array(
                    self,
                    [list(job_overrides[number]) for number in part],
                    ["hydra.sweep.dir" for _ in part],
                    [start + number for number in part],
                    [f"job_id_for_{start + number}" for number in part],
                    [Singleton.get_state()] * len(part),
                )
                yield from zip(part, jobs, strict=True)

        def _most_in_an_array(self) -> int:
            return sys.maxsize

    class LocalLauncher(_Submitted):
        """Jobs are processes of this machine."""

        _EXECUTOR = "local"

    class SlurmLauncher(_Submitted):
        """Jobs are those of Slurm."""

        _EXECUTOR = "slurm"

        def _most_in_an_array(self) -> int:
            from bitsweep.submitted import most_in_an_array

            return most_in_an_array()


with contextlib.suppress(ImportError):
    from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher as HydrasJoblibLauncher

    class JoblibLauncher(HydrasJoblibLauncher):  # type: ignore[misc]
        """Workers of joblib, each in a pool of its own: a pool that loses a worker gives up all that it was asked.

        Workers stay for later waves of jobs, and end with this process.
        """

        def __init__(self, n_jobs: int) -> None:
            """Note how many jobs run at once.

            Args:
                n_jobs: as joblib takes it: -1 for as many as there are CPUs.
            """
            super().__init__(n_jobs=n_jobs)
            self._idle: list[Any] = []

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
            """Run jobs as workers become free."""
            from joblib import effective_n_jobs

            at_once, count = effective_n_jobs(self.joblib["n_jobs"]), len(job_overrides)
            waiting = enumerate(_composed(self, job_overrides, initial_job_idx))
            state = Singleton.get_state()
            running: dict[Future[JobReturn], tuple[int, Any]] = {}
            answers: dict[int, JobReturn] = {}
            try:
                while len(answers) < count:
                    for number, config in itertools.islice(waiting, at_once - len(running)):
                        given = (self.hydra_context, config, self.task_function, state)
                        job, pool = self._submit(_run, *given)
                        running[job] = number, pool
                    for job in wait(running, return_when=FIRST_COMPLETED).done:
                        number, pool = running.pop(job)
                        answers[number] = _answer(job.result)
                        if job.exception() is None:
                            self._idle.append(pool)
                        else:
                            pool.shutdown(kill_workers=True)
            except BaseException:  # nobody waits for what they find any more
                for _, pool in running.values():
                    pool.shutdown(wait=False, kill_workers=True)
                raise
            return [answers[number] for number in range(count)]

        def _submit(self, function: Callable[..., Any], *given: Any) -> tuple[Future[Any], Any]:
            """Ask a worker that has nothing to do, or a new one; returns its answer to come, and its pool."""
            from joblib.externals.loky import ProcessPoolExecutor

            while self._idle:
                pool = self._idle.pop()
                with contextlib.suppress(BrokenExecutor):  # it was lost since its last job
                    return pool.submit(function, *given), pool
            pool = ProcessPoolExecutor(max_workers=1, initializer=_end_without, initargs=(os.getpid(),))
            return pool.submit(function, *given), pool

    def _end_without(parent: int) -> None:
        """Let a worker end once the process is gone that gives it jobs, after the one that it is at."""

        def watch() -> None:
            while os.getppid() == parent:
                time.sleep(1)
            with _AT_A_JOB:
                os._exit(0)

        threading.Thread(target=watch, daemon=True).start()

    def _run(context: HydraContext, config: DictConfig, task: TaskFunction, state: dict[Any, Any]) -> JobReturn:
        """Run a job in a worker."""
        setup_globals()
        Singleton.set_state(state)
        HydraConfig.instance().set_config(config)
        folders = {"job_dir_key": "hydra.sweep.dir", "job_subdir_key": "hydra.sweep.subdir"}
        with _AT_A_JOB:
            return run_job(hydra_context=context, config=config, task_function=task, **folders)


with contextlib.suppress(ImportError):
    from hydra_plugins.hydra_ray_launcher.ray_launcher import RayLauncher as HydrasRayLauncher

    class RayLauncher(HydrasRayLauncher):  # type: ignore[misc]
        """Tasks of Ray, each with an answer of its own."""

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
            """Hand all jobs to Ray, and wait for each."""
            import ray
            from hydra_plugins.hydra_ray_launcher._launcher_util import launch_job_on_ray, start_ray

            # Without a size Ray takes a third of the memory for objects, of which jobs have hardly any.
            self.ray_cfg.init.setdefault("object_store_memory", _OBJECT_STORE)
            start_ray(self.ray_cfg.init)
            jobs, state = [], Singleton.get_state()
            for config in _composed(self, job_overrides, initial_job_idx):
                given = (self.hydra_context, self.ray_cfg.remote, config, self.task_function, state)
                jobs.append(launch_job_on_ray(*given))
            return [_answer(partial(ray.get, job)) for job in jobs]


def _composed(launcher: Any, job_overrides: Sequence[Sequence[str]], start: int) -> Iterator[DictConfig]:
    """The configurations of jobs: made here, where each file is read once, and not by every worker for every job."""
    loader = copy.copy(launcher.hydra_context.config_loader)  # jobs get the other one, which knows nothing of this
    configs = compose_all(loader, launcher.config, [list(told) for told in job_overrides])
    for number, config in enumerate(configs, start=start):
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = f"job_id_for_{number}", number
        yield config


def _answer(ask: Callable[[], JobReturn]) -> JobReturn:
    try:
        return ask()
    except Exception as error:  # of a job that was killed or cancelled, or that could not be unpickled
        lost = JobReturn(status=JobStatus.FAILED)
        lost.return_value = error
        return lost
