"""The command as Hydra runs it: from command-line words to cells, and errors of Hydra in one line.

This, ``run.py`` and the sweeper in ``hydra_plugins/`` are all that knows Hydra. Every Hydra start imports this module,
so heavy imports stand inside.
"""

import difflib
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import pydantic
from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bitsweep.cell import Cell, bind
from bitsweep.config.binding import CONFIG_GROUPS, invalid
from bitsweep.results import Outcome
from bitsweep.sweep import Options, run_cell, run_sweep

_OPTIONS = tuple(Options.__dataclass_fields__)


#: What stands at the top of a configuration, Hydra's own settings apart.
_KEYS = (*CONFIG_GROUPS, "scale", "seed", "data", *_OPTIONS)


def read(config: DictConfig, words: Sequence[str]) -> tuple[Cell, Options]:
    """Bind a composed configuration; no part of it travels further.

    Args:
        words: the command-line words that it was composed from.

    Raises:
        ConfigError: naming key, value and what is allowed.
    """
    plain = {str(name): config[name] for name in config if name != "hydra"}
    plain = {
        name: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for name, v in plain.items()
    }
    options = {name: plain.pop(name) for name in _OPTIONS}
    try:
        checked = Options(**options)
    except pydantic.ValidationError as error:
        raise invalid(Options, error) from None
    kept = tuple(word for word in words if word.split("=")[0].lstrip("+~") not in _OPTIONS)
    return bind(plain, kept), checked


def run_job(config: DictConfig) -> Outcome | None:
    """What Hydra runs: a cell on its own, or a job of a sweep.

    Returns:
        The outcome of a job of a sweep. A cell on its own ends the program with its exit code instead.
    """
    hydra = HydraConfig.get()
    cell, options = read(config, hydra.overrides.task)
    folder = Path(hydra.runtime.output_dir)
    if hydra.mode == RunMode.MULTIRUN:
        return run_cell(cell, options, folder=folder, sweep_id=Path(hydra.sweep.dir).name)

    def launch(cells: Sequence[Cell], stage: str) -> list[Outcome]:
        return [run_cell(each, options, folder=folder, sweep_id=folder.name) for each in cells]

    sys.exit(run_sweep([cell], options, command=command_of(sys.argv), folder=folder, launch=launch))


def command_of(argv: Sequence[str]) -> str:
    """The command that started this program, as a user would type it."""
    return shlex.join(["python", Path(argv[0]).name, *argv[1:]])


def explain(error: Exception) -> str:
    """A Hydra or OmegaConf error in one line: key, value, what is allowed."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
    text = "\n".join(filter(None, [str(error), str(cause) if cause else ""])).strip()
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        close = difflib.get_close_matches(choice, error.options, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{group}={choice}: no such choice; {hint}choose from {', '.join(error.options)}"
    if match := re.search(r"Ambiguous value for argument '(.+)'", text):
        return f"{match[1]}: several values are a grid; add -m, as in `python run.py -m {match[1]}`"
    if match := re.search(r"Could not override '([^']+)'", text):
        return f"{match[1]}: no such key; {_did_you_mean(match[1])}`python run.py --cfg job` prints all keys"
    return " ".join(text.split())


def _did_you_mean(key: str) -> str:
    group, _, name = key.partition(".")
    known = list(getattr(CONFIG_GROUPS.get(group, Options), "__dataclass_fields__", {})) if name else _KEYS
    close = difflib.get_close_matches(name or group, known, n=1)
    return f"did you mean {'.'.join(filter(None, [group if name else '', close[0]]))}? " if close else ""
