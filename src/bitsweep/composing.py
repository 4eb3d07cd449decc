"""Configurations of the many jobs of a sweep."""

import copy
import dataclasses
import multiprocessing
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.default_element import ResultDefault
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig

#: Jobs for which another process is worth its start.
_EACH = 50


def compose_all(
    loader: ConfigLoaderImpl, whole: DictConfig, jobs: Sequence[list[str]], *, processes: int = 1
) -> Iterator[DictConfig]:
    """The configuration of each job, in order.

    Args:
        whole: the sweep's own configuration.
        jobs: overrides of each.
        processes: that compose those of many jobs, at most; more than one only where this process has no threads.
    """
    with _files_read_once(loader):
        processes = min(processes, len(jobs) // _EACH)
        if processes < 2 or "fork" not in multiprocessing.get_all_start_methods():
            yield from (loader.load_sweep_config(whole, job) for job in jobs)
            return
        context = multiprocessing.get_context("fork")
        with context.Pool(processes, initializer=_prepare, initargs=(loader, whole)) as pool:
            for job, made in zip(jobs, pool.imap(_compose, jobs, chunksize=10), strict=True):
                yield loader.load_sweep_config(whole, job) if made is None else made


#: What a process composes from; set where it starts.
_given: list[tuple[ConfigLoaderImpl, DictConfig]] = []


def _prepare(loader: ConfigLoaderImpl, whole: DictConfig) -> None:
    _given.append((loader, whole))


def _compose(job: list[str]) -> DictConfig | None:
    """None where that fails: the error is raised where all of it can be told."""
    ((loader, whole),) = _given
    try:
        made: DictConfig = loader.load_sweep_config(whole, job)
    except Exception:
        return None
    return made


@contextmanager
def _files_read_once(loader: ConfigLoaderImpl) -> Iterator[None]:
    """Let a loader read each file once for all configurations, and merge the same files once."""
    own, merge = loader.repository, loader._compose_config_from_defaults_list
    merged: dict[Any, DictConfig] = {}

    def merge_once(*, defaults: list[ResultDefault], repo: Any) -> DictConfig:
        sources = tuple((source.provider, source.path) for source in repo.get_sources())
        asked = sources, tuple(map(dataclasses.astuple, defaults))
        if asked not in merged:
            merged[asked] = merge(defaults=defaults, repo=repo)
        return copy.deepcopy(merged[asked])

    loader.repository, loader._compose_config_from_defaults_list = _ReadOnce(loader.get_search_path()), merge_once
    try:
        yield
    finally:
        loader.repository = own
        del loader._compose_config_from_defaults_list


class _ReadOnce(ConfigRepository):  # type: ignore[misc]
    """Files of configurations; Hydra works on a copy of it for each, and these share what was read."""

    sources: list[ConfigSource]

    def __init__(self, search_path: Any) -> None:
        super().__init__(search_path)
        self._read: dict[Any, bytes] = {}
        self._found: dict[Any, ConfigSource | None] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "_ReadOnce":
        return copy.copy(self)

    def load_config(self, config_path: str) -> ConfigResult | None:
        """What a file holds; each time another object, because Hydra goes on to change it."""
        asked = self._asked(config_path)
        if asked not in self._read:
            self._read[asked] = pickle.dumps(super().load_config(config_path))
        return pickle.loads(self._read[asked])

    def _find_object_source(self, config_path: str, object_type: ObjectType | None) -> ConfigSource | None:
        asked = self._asked(config_path, object_type)
        if asked not in self._found:
            self._found[asked] = super()._find_object_source(config_path, object_type)
        return self._found[asked]

    def _asked(self, *of: Any) -> tuple[Any, ...]:
        return tuple((source.provider, source.path) for source in self.sources), *of
