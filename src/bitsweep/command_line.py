"""The arguments of a command line, checked before Hydra composes them; and Hydra's errors, in one line.

They are read by Hydra's own parser, never split at "=".
"""

import dataclasses
import difflib
import importlib
import math
import os
import pickle
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bitsweep.config.binding import CONFIG_GROUPS, REQUIRE
from bitsweep.errors import ConfigError, MissingPackage
from bitsweep.options import Options
from bitsweep.runtime.environment import version_of
from bitsweep.text import some

#: Groups of YAMLs that are chosen from.
_GROUPS = (*CONFIG_GROUPS, REQUIRE, "scale", "sweep")
#: What stands at the top of a configuration, Hydra's own settings apart.
_KEYS = (*_GROUPS, "seed", "data", *Options.__dataclass_fields__)
#: Mappings whose keys are the user's, so that no YAML knows them.
_OPEN = ("model.arguments", "dataset.arguments")
#: Launcher -> the distribution that it comes in, and the extra that installs it.
_LAUNCHERS = {
    "joblib": ("hydra-joblib-launcher", "joblib"),
    "local": ("hydra-submitit-launcher", "slurm"),
    "slurm": ("hydra-submitit-launcher", "slurm"),
    "ray": ("hydra-ray-launcher", "ray"),
}
_CONF = Path(__file__).parent / "conf"


def checked(arguments: Sequence[str]) -> list[str]:
    """Arguments that Hydra can take.

    Raises:
        ConfigError: a word cannot be read, or asks for what cannot be.
    """
    parser = get_args_parser()
    parser.error = _refused  # type: ignore[method-assign]
    for action in parser._actions:
        if action.dest == "version":
            action.version = f"bitsweep {version_of('bitsweep')}"  # type: ignore[attr-defined]
    options = parser.parse_intermixed_args(list(arguments))
    if options.shell_completion:
        _check_completion(options.overrides)
        return list(arguments)
    if options.experimental_rerun:
        _check_rerun(options.experimental_rerun, options.overrides)
    named = any(word.lstrip("+").startswith(("sweep=", "hydra.mode=MULTIRUN")) for word in options.overrides)
    words = {word: _checked(word, multirun=options.multirun or named) for word in options.overrides}
    _tell_twice(options.overrides)
    # Hydra wants all overrides in one row.
    return [*(each for each in arguments if each not in words), *words.values()]


def _check_rerun(file: str, words: Sequence[str]) -> None:
    """Refuse what Hydra cannot repeat a cell from, and words that it would leave out."""
    asked = f"--experimental-rerun {file}"
    if words:
        raise ConfigError(f"{asked}: repeats what that file says, so {words[0]} has no effect; leave one of them out")
    try:
        with Path(file).open("rb") as pickled:
            found = isinstance(pickle.load(pickled), DictConfig)
    except OSError as error:
        raise ConfigError(f"{asked}: {error.strerror}; name the config.pickle in the .hydra folder of a run") from error
    except Exception:  # as many as there are ways to spoil a file
        found = False
    if not found:
        raise ConfigError(f"{asked}: is not what Hydra wrote; name the config.pickle in the .hydra folder of a run")


def _tell_twice(words: Sequence[str]) -> None:
    """Say which words have no effect, because a later one is about the same key."""
    parser = OverridesParser.create()
    last: dict[str, str] = {}
    for word in words:
        key = parser.parse_override(word).key_or_group
        if last.get(key, word) != word:
            _check_sweep(key, word)
            print(f"{last[key]}: has no effect, for {word} follows", file=sys.stderr, flush=True)
        last[key] = word


def _refused(message: str) -> NoReturn:
    raise ConfigError(f"{message}; `bitsweep run --help` lists what there is")


def _check_completion(words: Sequence[str]) -> None:
    word = " ".join(words)
    if not re.fullmatch(r"(install|uninstall|query)=(bash|zsh|fish)", word):
        raise ConfigError(f"-sc {word}: write -sc install=bash, or zsh or fish, or uninstall=bash")
    if word.startswith("query") and "COMP_LINE" not in os.environ:
        raise ConfigError(f"-sc {word}: is what a shell asks; write -sc install=bash")


def _checked(word: str, *, multirun: bool) -> str:
    parser = OverridesParser.create()
    try:
        override = parser.parse_override(word)
    except HydraException:
        raise ConfigError(_unreadable(word)) from None
    key = override.key_or_group
    if not key:
        raise ConfigError(f"{word}: no key; write KEY=VALUE, as in model=resnet18")
    needed = _LAUNCHERS.get(str(override.value())) if key == "hydra/launcher" else None
    if needed and version_of(needed[0]) == "absent":
        raise MissingPackage(*needed)
    if key == "hydra":
        raise ConfigError(f"{word}: Hydra's settings are set one by one, as in hydra.verbose=true")
    if key == "hydra.searchpath":
        _check_folders(override.value(), word)
    if override.is_delete():
        raise ConfigError(f"{word}: nothing can be left out; set another value, as in {key}=VALUE")
    if key.startswith("hydra"):
        return word
    if override.is_sweep_override():
        _check_grid(override, word, multirun=multirun)
    elif key in _GROUPS:
        _check_choice(key, override.value(), word)
    if (override.is_add() or override.is_force_add()) and key.partition(".")[0] not in _KEYS:
        raise ConfigError(f"{word}: no such key; {did_you_mean(key)}`--cfg job` prints all keys")
    if key == "store":  # the folder alone
        return f"store.folder={override.get_value_element_as_str()}"
    if key in _OPEN and not override.is_delete() and not isinstance(override.value(), dict):
        grid = f"; several of a name are given as {key}.width=2,4" if override.is_sweep_override() else ""
        raise ConfigError(f"{word}: should be names with values, as in '{key}={{width: 2}}'{grid}")
    if any(key == each or key.startswith(f"{each}.") for each in _OPEN) and not override.is_force_add():
        return f"++{word.lstrip('+')}"
    # A named sweep is no part of a configuration that has none, for which Hydra wants a plus; it drops other choices
    # that have one.
    if key in _GROUPS:
        return f"+{word.lstrip('+')}" if key == "sweep" else word.lstrip("+")
    return word


def _check_folders(places: object, word: str) -> None:
    for place in places if isinstance(places, list) else []:
        text = str(place.text if isinstance(place, QuotedString) else place)
        folder = Path(text.removeprefix("file://"))
        if not text.startswith("pkg://") and not folder.is_dir():
            raise ConfigError(f"{word}: there is no folder {folder}")


def _check_choice(group: str, choice: object, word: str) -> None:
    if isinstance(choice, list):
        _check_sweep(group, word)
        several = ",".join(map(str, choice))
        raise ConfigError(f"{word}: one choice at a time; a grid is written -m {group}={several}")
    if not isinstance(choice, str | QuotedString | dict):
        raise ConfigError(f"{word}: not a choice; {', '.join(_choices(group))} are")


def _check_sweep(group: str, word: str) -> None:
    """Refuse several named sweeps."""
    if group == "sweep":
        raise ConfigError(f"{word}: one named sweep at a time; start one command after the other")


def _choices(group: str) -> list[str]:
    return sorted(file.stem for file in (_CONF / group).glob("*.yaml"))


def _check_grid(override: Override, word: str, *, multirun: bool) -> None:
    key = override.key_or_group
    _check_sweep(key, word)
    if isinstance(interval := override.value(), IntervalSweep):
        _check_interval(interval, word)
    elif not isinstance(override.value(), Glob):
        if not (values := list(override.sweep_iterator())):
            raise ConfigError(f"{word}: holds no value; a range needs an end beyond its start")
        for value in values if key in _GROUPS else []:
            _check_choice(key, value, word)
    if not multirun:
        path = f", or quote a comma that belongs to the value: {_quoted(word)}" if "/" in word else ""
        raise ConfigError(f"{word}: several values are a grid; add -m{path}")


def _check_interval(interval: IntervalSweep, word: str) -> None:
    low, high = interval.start, interval.end
    if low is None or high is None or not -math.inf < low < high < math.inf:
        raise ConfigError(f"{word}: an interval needs a number to begin with, and a larger one to end with")
    if unknown := interval.tags - {"log"}:
        raise ConfigError(f"{word}: no such tag as {', '.join(sorted(unknown))}; log is one, for equal ratios")
    if "log" in interval.tags and low <= 0:
        raise ConfigError(f"{word}: equal ratios need a number above 0 to begin with")


def _unreadable(word: str) -> str:
    key, equals, value = word.partition("=")
    if not equals:
        return f"{word}: no value; write KEY=VALUE, as in model=resnet18"
    if not key.strip("+~"):
        return f"{word}: no key; write KEY=VALUE, as in model=resnet18"
    if not re.fullmatch(r"[+~]*[\w.@/:-]+", key):
        return f"{word}: {key} is no key; `--cfg job` prints all keys"
    if not re.sub(r"[\s,]", "", value) or re.search(r"^\s*,|,\s*,|,\s*$", value):
        return f"{word}: a value is missing; write {key}=VALUE, or {key}=VALUE,VALUE with -m"
    return f"{word}: cannot be read; quote the value: {_quoted(word)}"


def _quoted(word: str) -> str:
    key, _, value = word.partition("=")
    escaped = value.replace("'", "\\'")
    text = f"{key}='{escaped}'"
    return shlex.quote(text) if set('$`"\\!') & set(text) else f'"{text}"'


def explain(error: Exception, conf: Path) -> str:
    """A Hydra or OmegaConf error in one line: key, value, what is allowed.

    Args:
        conf: folder of YAMLs.
    """
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
    text = "\n".join(filter(None, [str(error), str(cause) if cause else ""])).strip()
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_such_choice(error.missing_cfg_file, error.options or [])
    signs = (r"is not in struct\s+full_key: (\S+)", r"Could not override '([^']+)'")
    if match := next(filter(None, (re.search(sign, text) for sign in signs)), None):
        return _not_listed(match[1], cause) or _no_such_key(match[1], conf)
    if match := re.search(r"nterpolation (?:key )?'(?:\$\{)?([^'}]+)\}?'", text):
        return f"${{{match[1]}}}: no such key, whose value could be taken; `--cfg job` prints all keys"
    if text.startswith("Primary config"):
        return "--config-path: no such folder; --config-dir FOLDER adds YAML files of your own"
    return " ".join(text.split())


def explain_yaml(error: Exception) -> str:
    """Why a file of somebody's cannot be read as YAML, in one line."""
    if isinstance(error, RecursionError):
        return "the defaults of a YAML file lead back to it; leave one of them out"
    kind = "is not in UTF-8" if isinstance(error, UnicodeDecodeError) else "cannot be read"
    return f"a YAML file {kind}: {' '.join(str(error).split())}"


def _no_such_choice(file: str, known: Sequence[str]) -> str:
    if "/" not in file:
        return f"--config-name {file}: no such file; name one of {_CONF.name}/, or give --config-dir FOLDER"
    group = next((each for each in _GROUPS if file.startswith(f"{each}/")), file.rpartition("/")[0])
    choice = file.removeprefix(f"{group}/")
    known = known or _choices(group)
    if "/" in choice or "." in choice:
        own = " a file of your own is no choice;" if group in ("model", "dataset") else ""
        return f"{group}={choice}: no such choice;{own} choose from {', '.join(known)}"
    close = difflib.get_close_matches(choice, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{group}={choice}: no such choice; {hint}choose from {', '.join(known)}"


def _not_listed(key: str, error: OmegaConfBaseException | None) -> str:
    """What to do about a key that the class of a choice has and its YAML does not list; empty where it has none."""
    choice = getattr(error, "parent_node", None)
    target = choice.get("_target_") if isinstance(choice, DictConfig) else None
    if (here := str(Path.cwd())) not in sys.path:  # where plug-ins of the user's own may lie
        sys.path.append(here)
    try:
        module, _, name = str(target).rpartition(".")
        fields = dataclasses.fields(getattr(importlib.import_module(module), name))
    except Exception:  # whatever a module of somebody else's raises
        return ""
    if key.rpartition(".")[2] not in {field.name for field in fields}:
        return ""
    return f"{key}: {name} has it, but its YAML does not list it; write +{key}=VALUE, or list it there"


def _no_such_key(key: str, conf: Path) -> str:
    group, _, name = key.partition(".")
    having = [choice for choice, knobs in _knobs(group, conf).items() if name.partition(".")[0] in knobs]
    if name and having:
        return (
            f"{key}: a choice of {group} here has no such key, only {some(sorted(having), 5)}: give the others in a "
            "command of their own"
        )
    return f"{key}: no such key; {did_you_mean(key, conf)}`--cfg job` prints all keys"


def _knobs(group: str, conf: Path) -> dict[str, set[str]]:
    """What can be set of every choice of a group."""
    return {file.stem: set(map(str, OmegaConf.load(file))) for file in (conf / group).glob("*.yaml")}


def did_you_mean(key: str, conf: Path = _CONF) -> str:
    """The known key that is like one that is not known, as a question; empty where none is."""
    group, _, name = key.partition(".")
    if not name:
        close = difflib.get_close_matches(group, _KEYS, n=1)
        return f"did you mean {close[0]}? " if close else ""
    if group not in (*CONFIG_GROUPS, REQUIRE):
        return did_you_mean(group, conf)
    close = difflib.get_close_matches(name, {knob for knobs in _knobs(group, conf).values() for knob in knobs}, n=1)
    return f"did you mean {group}.{close[0]}? " if close else ""
