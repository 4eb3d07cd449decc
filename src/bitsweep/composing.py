"""Configurations of the many jobs of a sweep."""

import copy
import dataclasses
import math
import multiprocessing
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra.core.default_element import ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig

#: Jobs for which another process is worth its start.
_EACH = 200


def compose_all(
    loader: ConfigLoaderImpl, whole: DictConfig, jobs: Sequence[list[str]], *, processes: int = 1
) -> Iterator[DictConfig]:
    """The configuration of each job, in order.

    Args:
        whole: the sweep's own configuration.
        jobs: overrides of each.
        processes: that compose those of many jobs, at most; more than one only where this process has no threads.
    """
    with files_read_once(loader):
        processes = min(processes, len(jobs) // _EACH)
        if processes < 2 or "fork" not in multiprocessing.get_all_start_methods():
            yield from (loader.load_sweep_config(whole, job) for job in jobs)
            return
        context = multiprocessing.get_context("fork")
        with context.Pool(processes, initializer=_prepare, initargs=(loader, whole)) as pool:
            # Jobs that follow each other have the same choices: what a process found for one serves the next.
            composed = pool.imap(_compose, jobs, chunksize=math.ceil(len(jobs) / processes))
            for job, made in zip(jobs, composed, strict=True):
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
def files_read_once(loader: ConfigLoaderImpl) -> Iterator[None]:
    """Let a loader read each file once for all configurations, and find and merge those of the same choices once.

    Not to be nested.
    """
    own, merge = loader.repository, loader._compose_config_from_defaults_list
    listed: dict[Any, DefaultsList] = {}
    merged: dict[Any, bytes] = {}

    def list_once(*, repo: Any, overrides_list: list[Override], **settings: Any) -> DefaultsList:
        """The files of the choices: no other override decides which they are."""
        told = [each for each in overrides_list if not isinstance(each.value(), dict)]
        choices = [each for each in told if repo.group_exists(each.key_or_group)]
        asked = _sources(repo), tuple(settings.items()), tuple(each.input_line for each in choices)
        if asked not in listed:
            listed[asked] = create_defaults_list(repo=repo, overrides_list=choices, **settings)
        others = [each for each in overrides_list if each not in choices and not each.is_sweep_override()]
        return dataclasses.replace(listed[asked], config_overrides=others)

    def merge_once(*, defaults: list[ResultDefault], repo: Any) -> DictConfig:
        asked = _sources(repo), tuple(map(dataclasses.astuple, defaults))
        if asked not in merged:
            merged[asked] = pickle.dumps(merge(defaults=defaults, repo=repo))
        made: DictConfig = pickle.loads(merged[asked])
        return made

    loader.repository, loader._compose_config_from_defaults_list = _ReadOnce(loader.get_search_path()), merge_once
    config_loader_impl.create_defaults_list = list_once
    try:
        yield
    finally:
        config_loader_impl.create_defaults_list = create_defaults_list
        loader.repository = own
        del loader._compose_config_from_defaults_list


def _sources(repo: Any) -> tuple[Any, ...]:
    return tuple((source.provider, source.path) for source in repo.get_sources())


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
        return _sources(self), *of
