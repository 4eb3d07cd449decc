"""The arguments of a command line, checked before Hydra composes them.

They are read by Hydra's own parser, never split at "=".
"""

import math
import os
import pickle
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig

from bitsweep.errors import ConfigError, MissingPackage
from bitsweep.hydra_errors import GROUPS, KEYS, choices_of, did_you_mean
from bitsweep.runtime.environment import version_of
from bitsweep.text import plain, shortened

#: Mappings whose keys are the user's, so that no YAML knows them.
_OPEN = ("model.arguments", "dataset.arguments")
#: Launcher -> the distribution that it comes in, and the extra that installs it.
_LAUNCHERS = {
    "joblib": ("hydra-joblib-launcher", "joblib"),
    "local": ("hydra-submitit-launcher", "slurm"),
    "slurm": ("hydra-submitit-launcher", "slurm"),
    "ray": ("hydra-ray-launcher", "ray"),
}
#: Sweepers that choose jobs by one number of each, which cells have several of.
_SEARCHING = ("ax", "nevergrad", "optuna")
#: Words that name a folder, which is never the one that is worked in.
_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "data")
#: Values that a word of a grid may have.
_MOST = 100_000
#: Characters of a path, and bytes of a name in it, that systems take.
_LONGEST, _LONGEST_NAME = 4095, 255


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
    modes = [f"--{mode}" for mode in ("run", "multirun", "cfg", "info") if getattr(options, mode)]
    if len(modes) > 1:
        raise ConfigError(f"{' '.join(modes)}: only one of them can be done; leave out the others")
    shown = [f"--{name}" for name in ("resolve", "package") if getattr(options, name)]
    if shown and not (options.cfg or options.help):
        raise ConfigError(f"{shown[0]}: is about what is shown; add --cfg job")
    if options.shell_completion:
        _check_completion(options.overrides)
        return list(arguments)
    if options.config_dir is not None and not Path(options.config_dir).is_dir():
        raise ConfigError(f"--config-dir {options.config_dir}: there is no such folder")
    if options.experimental_rerun:
        _check_rerun(options.experimental_rerun, options.overrides)
    named = any(word.lstrip("+").startswith(("sweep=", "hydra.mode=MULTIRUN")) for word in options.overrides)
    words = {word: _checked(word, multirun=options.multirun or named) for word in options.overrides}
    if options.multirun and (single := [word for word in words if word.lstrip("+") == "hydra.mode=RUN"]):
        raise ConfigError(f"-m {single[0]}: asks for a grid, and for a single run; leave one of them out")
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
            print(plain(f"{last[key]}: has no effect, for {word} follows"), file=sys.stderr, flush=True)
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
    except (ValueError, RecursionError):  # digits or brackets, by the thousand
        raise ConfigError(f"{shortened(word, 60)}: is too long to be read") from None
    key = override.key_or_group
    if not key:
        raise ConfigError(f"{word}: no key; write KEY=VALUE, as in model=resnet18")
    needed = _LAUNCHERS.get(str(override.value())) if key == "hydra/launcher" else None
    if needed and version_of(needed[0]) == "absent":
        raise MissingPackage(*needed)
    if key == "hydra/sweeper" and str(override.value()) in _SEARCHING:
        raise ConfigError(
            f"{word}: wants one number of each cell; search.minutes=30 chooses cells by what they are for"
        )
    if key in ("hydra.launcher", "hydra.sweeper"):
        raise ConfigError(f"{word}: is chosen with a slash, as in {key.replace('.', '/')}=basic")
    if key == "hydra":
        raise ConfigError(f"{word}: Hydra's settings are set one by one, as in hydra.verbose=true")
    if key == "hydra.searchpath":
        _check_folders(override.value(), word)
    if key in _FOLDERS and not override.is_delete() and str(override.value()).strip() in ("", "None"):
        raise ConfigError(f"{word}: name a folder, as in {key}=FOLDER")
    for text in () if key.startswith(_OPEN) else _texts(override.value()):
        _check_place(key, text)
    if override.is_delete():
        raise ConfigError(f"{word}: nothing can be left out; set another value, as in {key}=VALUE")
    if key.startswith("hydra"):
        return word
    if override.is_sweep_override():
        _check_grid(override, word, multirun=multirun)
    elif key in GROUPS:
        _check_choice(key, override.value(), word)
    if (override.is_add() or override.is_force_add()) and key.partition(".")[0] not in KEYS:
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
    if key in GROUPS:
        return f"+{word.lstrip('+')}" if key == "sweep" else word.lstrip("+")
    return word


def _texts(value: object) -> Iterator[str]:
    """All text of a value, which may be a list or a mapping."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)
    elif isinstance(value, str | QuotedString):
        yield value if isinstance(value, str) else value.text


def _check_place(key: str, text: str) -> None:
    """Refuse what no file can be called, and what is no folder where one is wanted."""
    if len(text) > _LONGEST or any(len(part.encode()) > _LONGEST_NAME for part in text.split("/")):
        raise ConfigError(
            f"{key}={text[:40]}...: {len(text):,} characters are more than a name or a path can have; shorten it"
        )
    place = Path(text).expanduser()
    if key in (*_FOLDERS, "store", "store.folder") and os.path.lexists(place) and not place.is_dir():
        raise ConfigError(f"{key}={text}: is no folder; name one, or what is not there yet")


def _check_folders(places: object, word: str) -> None:
    if not isinstance(places, list):
        raise ConfigError(f"{word}: should be a list of folders, as in 'hydra.searchpath=[FOLDER]'")
    for place in places:
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
        raise ConfigError(f"{word}: not a choice; {', '.join(choices_of(group))} are")


def _check_sweep(group: str, word: str) -> None:
    """Refuse several named sweeps."""
    if group == "sweep":
        raise ConfigError(f"{word}: one named sweep at a time; start one command after the other")


def _check_grid(override: Override, word: str, *, multirun: bool) -> None:
    key = override.key_or_group
    _check_sweep(key, word)
    if isinstance(interval := override.value(), IntervalSweep):
        _check_interval(interval, word)
    elif not isinstance(override.value(), Glob):
        if not (values := _values(override, word)):
            raise ConfigError(f"{word}: holds no value; a range needs an end beyond its start")
        for value in values:
            for text in _texts(value):
                _check_place(key, text)
            if key in GROUPS:
                _check_choice(key, value, word)
    if not multirun:
        path = f", or quote a comma that belongs to the value: {_quoted(word)}" if "/" in word else ""
        raise ConfigError(f"{word}: several values are a grid; add -m{path}")


def _values(override: Override, word: str) -> list[object]:
    """The values of a grid that a word lists."""
    several = override.value()
    try:
        if isinstance(several, RangeSweep):
            start, stop, step = (float(each) for each in (several.start, several.stop, several.step))
            if (stop - start) / step > _MOST:
                raise OverflowError
        return list(override.sweep_iterator())
    except OverflowError:
        raise ConfigError(f"{word}: has more than {_MOST} values; give fewer, or search an interval") from None
    except (ArithmeticError, TypeError, ValueError, HydraException):
        raise ConfigError(f"{word}: a range needs finite numbers, and a step other than 0") from None


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
