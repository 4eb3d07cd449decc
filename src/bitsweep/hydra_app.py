"""The command as Hydra runs it, and what a command line means: cells, a space to search, requirements.

This, ``configured.py``, ``command_line.py``, ``hydra_errors.py``, ``several_values.py``, ``composing.py`` and the
sweeper in ``hydra_plugins/`` are all that knows Hydra. Every Hydra start imports this module, so heavy imports stand
inside.
"""

import contextlib
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, read_write
from omegaconf.errors import OmegaConfBaseException

from bitsweep.cell import Cell
from bitsweep.command_line import checked as checked_words
from bitsweep.composing import compose_all
from bitsweep.config.binding import REQUIRE, construct
from bitsweep.config.overrides import as_word
from bitsweep.config.requirement import Requirements
from bitsweep.configured import forget_yamls, plain_of, read, typed_command
from bitsweep.errors import BitsweepError, ConfigError
from bitsweep.hydra_errors import explain, explain_yaml
from bitsweep.job import run_cell
from bitsweep.planning import describe, plan
from bitsweep.results import Outcome
from bitsweep.runtime.store import Store
from bitsweep.search.sampling import SearchSpace, corners
from bitsweep.several_values import grid_overrides, spaces
from bitsweep.sweep import run_sweep
from bitsweep.sweep_folder import free_folder, own_folder, remove_unused
from bitsweep.text import plain

#: The YAMLs that are installed with the package.
CONF = Path(__file__).parent / "conf"
_CHATTY = ("matplotlib", "PIL", "torch", "onnx_ir", "onnxscript", "mlflow", "alembic", "urllib3", "filelock", "git")
#: Folders of this process that no other sweep has written to.
_own: set[Path] = set()


class OwnFolder(Callback):  # type: ignore[misc]
    """Chooses the folder of a cell on its own before Hydra writes to it: what another sweep left there stays."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra, which turns errors into warnings: what cannot be created it names itself."""
        wanted = Path(config.hydra.run.dir).absolute()
        with contextlib.suppress(OSError):
            if str(config.get("plan")).lower() == "false":
                _own.add(folder := own_folder(wanted))
            else:
                folder = free_folder(wanted)
            with read_write(config):
                config.hydra.run.dir = str(folder)


def main(arguments: Sequence[str] | None = None, *, conf: Path = CONF) -> None:
    """Run a command line to its end: one cell, or a grid with ``-m``.

    Ends with exit code 1 or 2, and one line on standard error, where it cannot be done.

    Args:
        arguments: of the command line; those that this program was started with where None is given.
        conf: folder of YAMLs, with ``config.yaml``.
    """
    # Hydra would print its own traceback and advice; errors are printed here, in one line.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Hydra keeps how a job ended in a file of its own; on a full disk the error is told already.
    warnings.filterwarnings("ignore", message="Callback PickleJobInfoCallback")
    warnings.filterwarnings("ignore", message="Experimental rerun CLI option")
    try:
        given = sys.argv[1:] if arguments is None else list(arguments)
        sys.argv = [sys.argv[0], *checked_words(given)]
        with _places_told():
            hydra.main(version_base="1.3", config_path=str(conf.absolute()), config_name="config")(run_job)()
    except BitsweepError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        print(plain(f"error: {explain(error, conf)}"), file=sys.stderr)
        sys.exit(ConfigError.exit_code)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        print(plain(f"error: {explain_yaml(error)}"), file=sys.stderr)
        sys.exit(ConfigError.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


@contextlib.contextmanager
def _places_told() -> Iterator[None]:
    """Turn the error of a file that cannot be read or written into one line."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        hint = "hydra.run.dir and hydra.sweep.dir name the folder of a run"
        raise ConfigError(f"{error.filename}: {error.strerror}; {hint}") from error


def run_job(config: DictConfig) -> Outcome | None:
    """What Hydra runs: a cell on its own, or a job of a sweep.

    Returns:
        The outcome of a job of a sweep. A cell on its own ends the program with its exit code instead.
    """
    for name in _CHATTY:  # `hydra.verbose=true` is about this project
        logging.getLogger(name).setLevel(logging.WARNING)
    about = HydraConfig.get()
    os.chdir(about.runtime.cwd)  # `hydra.job.chdir=true` must not give every job a store of its own
    folder = Path(about.runtime.output_dir).absolute()
    try:
        with _places_told():
            cell, options = read(config, about)
            if about.mode == RunMode.MULTIRUN:
                if options.plan:  # a sweeper that plans nothing itself
                    print(describe(plan([cell], Store(options.store.folder), None)))
                    return None
                return run_cell(cell, options, folder=folder, sweep_id=Path(about.sweep.dir).name)

            if options.search.limited:
                raise ConfigError("search: chooses among the cells of a grid; add -m, and several values")
            if not options.plan and folder not in _own:  # `--experimental-rerun` reads a file instead of composing
                folder = own_folder(folder)
            _own.discard(folder)

            def launch(cells: Sequence[Cell], stage: str) -> list[Outcome]:
                return [run_cell(each, options, folder=folder, sweep_id=folder.name) for each in cells]

            sys.exit(run_sweep([cell], options, command=typed_command(), folder=folder, launch=launch, is_all=True))
    except BitsweepError as error:
        if about.mode == RunMode.MULTIRUN:
            return Outcome(status="failed", reason=str(error))
        remove_unused(folder)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def cells_of(overrides: Sequence[str], *, conf: Path = CONF) -> list[Cell]:
    """The cells of a grid, by the overrides of a command line with ``-m``.

    Raises:
        ConfigError: naming key, value and what is allowed.
    """
    with _opened(overrides, conf) as (config, checked, given):
        jobs = compose_all(given["loader"], config, grid_overrides(checked, **given))
        return [read(each, each.hydra)[0] for each in jobs]


def space_of(overrides: Sequence[str], *, conf: Path = CONF) -> SearchSpace:
    """What a search chooses from, by the overrides of a command line with ``-m``.

    Raises:
        ConfigError: naming key, value and what is allowed; there is no interval among them.
    """
    own = [word for word in overrides if not word.startswith("hydra")]
    with _opened(overrides, conf) as (config, checked, given):
        said = [word for word in checked if not word.startswith("hydra")]
        found = spaces(said, **given, config=config)
    if not found:
        raise ConfigError(f"{shlex.join(own)}: no interval of values; bs.grid lists the cells of such a grid")

    def cell_at(point: list[str]) -> Cell:
        with _opened(overrides, conf) as (config, _, given):
            (job,) = compose_all(given["loader"], config, [point])
            return read(job, job.hydra)[0]

    for space in found.values():
        for point in corners(space):  # what is not allowed is told before anything runs
            cell_at(point)
    return SearchSpace(spaces=found, cell_at=cell_at, command=shlex.join(["bitsweep", "run", "-m", *own]))


@contextlib.contextmanager
def _opened(overrides: Sequence[str], conf: Path) -> Iterator[tuple[DictConfig, list[str], dict[str, Any]]]:
    """The configuration of a grid, its overrides as Hydra takes them, and what else says which cells it has.

    Raises:
        ConfigError: naming key, value and what is allowed.
    """
    checked = checked_words(["-m", *overrides])[1:]
    forget_yamls()
    try:
        with _hydra_reads(conf) as loader:
            config = loader.load_configuration("config", checked, run_mode=RunMode.MULTIRUN)
            sweeper = config.hydra.sweeper
            yield (
                config,
                checked,
                {"params": sweeper.params or {}, "grids": sweeper.grids or {"": {}}, "loader": loader},
            )
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, conf)) from None


@contextlib.contextmanager
def _hydra_reads(conf: Path) -> Iterator[ConfigLoader]:
    """Hydra with a folder of YAMLs, also in a program that has initialised it for its own."""
    others = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(conf.absolute()), version_base="1.3"):
            yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().hydra = others


def requirements(words: Sequence[str], *, recorded: Requirements, conf: Path = CONF) -> Requirements:
    """The requirements of a sweep with some set anew, by overrides such as ``require.drop_pp=1``.

    Args:
        words: a value of ``null`` takes a limit away; ``require=CHOICE`` replaces all that were recorded.

    Raises:
        ConfigError: naming key, value and what is allowed.
    """
    for word in words:
        if not re.match(rf"\+*{REQUIRE}[.=]", word):
            raise ConfigError(f"{word}: only requirements can be set for a report, as in {REQUIRE}.drop_pp=1")
    if not words:
        return recorded
    known = {} if any(re.match(rf"\+*{REQUIRE}=", word) for word in words) else recorded.set_values
    named = {word.partition("=")[0].lstrip("+") for word in words}
    kept = {key: value for name, value in known.items() if (key := f"{REQUIRE}.{name}") not in named}
    said = [*(f"{key}={as_word(value)}" for key, value in kept.items()), *words]
    checked = checked_words(said)
    try:
        with _hydra_reads(conf) as loader:
            config = loader.load_configuration("config", checked, run_mode=RunMode.RUN)
            found: Requirements = construct(REQUIRE, plain_of(config, REQUIRE), Requirements)
            return found
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, conf)) from None
