"""A configuration that Hydra composed, as a cell with its options, and the command that makes the cell alone."""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import pydantic
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bitsweep.cell import Cell, bind
from bitsweep.config.binding import CONFIG_GROUPS, REQUIRE, invalid
from bitsweep.config.overrides import as_word, differing
from bitsweep.errors import ConfigError, first_line
from bitsweep.options import Options

#: What only names folders.
_OF_HYDRA = ("hydra", "job_folder")
_OPTIONS = tuple(Options.__dataclass_fields__)
#: Name of a configuration -> its choices.
_usual: dict[str, dict[str, str]] = {}
#: Group and choice -> what the YAMLs say of it.
_known: dict[tuple[str, ...], dict[str, Any]] = {}


def read(config: DictConfig, about: DictConfig) -> tuple[Cell, Options]:
    """Bind a composed configuration; no part of it travels further.

    Args:
        about: Hydra's own settings.

    Raises:
        ConfigError: naming key, value and what is allowed.
    """
    if about.runtime.cwd not in sys.path:  # where plug-ins of the user's own may lie
        sys.path.append(about.runtime.cwd)
    plain = {str(name): plain_of(config, str(name)) for name in config if name not in _OF_HYDRA}
    for group in (*CONFIG_GROUPS, REQUIRE):
        if not isinstance(plain.get(group), Mapping):
            raise ConfigError(f"{group}={as_word(plain.get(group))}: a choice is needed; give one of conf/{group}/")
    try:
        options = Options(**{name: plain[name] for name in _OPTIONS})
    except pydantic.ValidationError as error:
        raise invalid(Options, error) from None
    chosen = {group: str(choice) for group, choice in about.runtime.choices.items() if group in CONFIG_GROUPS}
    defaults = _defaults(about, chosen, plain)
    knobs = tuple(
        knob
        for group, choice in chosen.items()
        for knob in differing(plain[group], defaults[group, choice], f"{group}.")
    )
    cell = bind(plain, knobs=knobs, command=_command(about, chosen, knobs, seed=plain["seed"]))
    return cell, options


def forget_yamls() -> None:
    """Read the YAMLs again, which may have changed."""
    for known in (_usual, _known):
        known.clear()


def typed_command() -> str:
    """The command that started this program, as a user would type it."""
    return shlex.join([*_program(), *sys.argv[1:]])


def plain_of(holder: DictConfig, name: str) -> Any:
    """What a configuration says of a key.

    Raises:
        ConfigError: a value is to be given, or names another that is not there.
    """
    try:
        value = holder[name]
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        key, reason = error.full_key or name, first_line(error)
        raise ConfigError(f"{key}: {reason}; give a value, as in {key}=VALUE") from None


def _program() -> list[str]:
    name = Path(sys.argv[0]).name
    return ["python", name] if name == "run.py" else ["bitsweep", "run"]


def _command(about: DictConfig, chosen: dict[str, str], knobs: Sequence[tuple[str, str]], *, seed: Any) -> str:
    """The command that makes a cell alone."""
    sources = about.runtime.config_sources
    name = about.job.config_name
    words = [] if name == "config" else ["--config-name", name]
    words += [word for each in sources if each.provider == "command-line" for word in ("--config-dir", each.path)]
    searched = [
        f"{each.schema}://{Path(about.runtime.cwd, each.path) if each.schema == 'file' else each.path}"
        for each in sources
        if each.provider.startswith("hydra.searchpath")
    ]
    words += [f"hydra.searchpath={as_word(searched)}"] if searched else []
    usual = _usual_choices(about)
    words += [f"{group}={as_word(choice)}" for group, choice in chosen.items() if choice != usual[group]]
    words += [f"seed={seed}"] if seed else []
    return shlex.join([*_program(), *words, *(f"{knob}={value}" for knob, value in knobs)])


def _usual_choices(about: DictConfig) -> Mapping[str, str]:
    """The choices of the configuration that nothing was said about."""
    name = str(about.job.config_name)
    if name not in _usual:
        _usual[name] = dict(_compose(about).hydra.runtime.choices)
    return _usual[name]


def _defaults(
    about: DictConfig, chosen: Mapping[str, str], composed: Mapping[str, Any]
) -> dict[tuple[str, ...], dict[str, Any]]:
    """What the YAMLs say of the chosen choices, by group and choice.

    Args:
        composed: what was asked for. Where that may differ from the YAMLs, these alone are composed, all at once.
    """
    named = _groups_beyond_their_yamls(about.overrides.task)
    for group, choice in chosen.items():
        if group not in named:
            _known.setdefault((group, choice), composed[group])
    if not all(item in _known for item in chosen.items()):
        without = _compose(about, *(f"{group}={as_word(choice)}" for group, choice in chosen.items()))
        for item in chosen.items():
            _known.setdefault(item, plain_of(without, item[0]))
    return _known


def _groups_beyond_their_yamls(overrides: Sequence[str]) -> set[str]:
    """Groups with more overrides than of their choice; all of them where an override does not tell."""
    found: set[str] = set()
    for override in overrides:
        group, more = re.match(r"[+~]*(\w*)([^=]*)", override).groups()  # type: ignore[union-attr]
        if group in (*CONFIG_GROUPS, REQUIRE) and more.startswith("."):
            found |= {group} - {REQUIRE}
        elif more or group not in (*CONFIG_GROUPS, REQUIRE, *_OPTIONS, "seed"):
            return set(CONFIG_GROUPS)
    return found


def _compose(about: DictConfig, *overrides: str) -> DictConfig:
    """The configuration that overrides make, with Hydra's own settings under ``hydra``."""
    if not GlobalHydra.instance().is_initialized():  # `--experimental-rerun` reads a file instead of composing
        (main_folder,) = (each.path for each in about.runtime.config_sources if each.provider == "main")
        hydra.initialize_config_dir(main_folder, version_base="1.3")
    searched = [f"hydra.searchpath={as_word([str(each) for each in about.searchpath])}"] if about.searchpath else []
    loader = GlobalHydra.instance().config_loader()
    composed: DictConfig = loader.load_configuration(
        about.job.config_name, [*overrides, *searched], run_mode=RunMode.RUN
    )
    return composed
