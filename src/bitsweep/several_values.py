"""Overrides with several values: the cells of the grids that they list, or the spaces that a search chooses from."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf

from bitsweep.errors import ConfigError
from bitsweep.search.sampling import Interval, Space

#: Why an interval is no part of a grid.
ENDLESS = "an interval has no end of values; name them, as in 0.1,0.2, or search it: -m search.minutes=30, or bs.space"


def grid_overrides(
    overrides: Sequence[str], *, params: Mapping[str, Any], grids: Mapping[str, Mapping[str, Any]], loader: ConfigLoader
) -> list[list[str]]:
    """The overrides of each cell of a grid, or of several grids.

    Args:
        overrides: with several values where cells differ.
        params: of all grids besides, by key.
        grids: of each grid alone.
    """
    found: list[list[str]] = []
    for said in _parsed(overrides, params=params, grids=grids, loader=loader).values():
        if endless := [str(each.input_line) for each in said if each.is_interval_sweep()]:
            raise ConfigError(f"{', '.join(endless)}: {ENDLESS}")
        if empty := [str(each.input_line) for each in said if each.is_sweep_override() and not _listed(each)]:
            raise ConfigError(f"{', '.join(empty)}: no choice has such a name, so there is nothing to run")
        (part,) = BasicSweeper.split_arguments(said, None)
        found += part
    return found


def spaces(
    overrides: Sequence[str],
    *,
    params: Mapping[str, Any],
    grids: Mapping[str, Mapping[str, Any]],
    loader: ConfigLoader,
    config: DictConfig,
) -> dict[str, Space]:
    """What cells are chosen from where an override has an interval of values, by the name of the grid; else nothing.

    Args:
        config: whose settings say which of them are whole numbers.
    """
    parsed = _parsed(overrides, params=params, grids=grids, loader=loader)
    if not any(each.is_interval_sweep() for said in parsed.values() for each in said):
        return {}
    return {
        name: {
            each.get_key_element(): _interval(each, config) if each.is_interval_sweep() else _listed(each)
            for each in said
        }
        for name, said in parsed.items()
    }


def _parsed(
    overrides: Sequence[str], *, params: Mapping[str, Any], grids: Mapping[str, Mapping[str, Any]], loader: ConfigLoader
) -> dict[str, list[Override]]:
    parser = OverridesParser.create(config_loader=loader)
    words = {
        name: [*(f"{key}={value}" for key, value in {**own, **params}.items()), *overrides]
        for name, own in grids.items()
    }
    return {name: parser.parse_overrides(said) for name, said in words.items()}


def _listed(override: Override) -> tuple[str, ...]:
    if override.is_sweep_override():
        return tuple(override.sweep_string_iterator())
    return (override.get_value_element_as_str(),)


def _interval(override: Override, config: DictConfig) -> Interval:
    interval = override.value()
    assert isinstance(interval, IntervalSweep)
    low, high = interval.start, interval.end
    assert low is not None and high is not None
    counts = type(OmegaConf.select(config, override.get_key_element(), default=None)) is int
    whole = isinstance(low, int) or (counts and float(low).is_integer() and float(high).is_integer())
    return Interval(low=low, high=high, whole=whole, log="log" in interval.tags)
