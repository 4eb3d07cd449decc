"""Errors of Hydra, of OmegaConf and of YAML files in one line: the key, its value, what is allowed, what was meant."""

import dataclasses
import difflib
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bitsweep.config.binding import CONFIG_GROUPS, REQUIRE
from bitsweep.options import Options
from bitsweep.text import some

#: Groups of YAMLs that are chosen from.
GROUPS = (*CONFIG_GROUPS, REQUIRE, "scale", "sweep")
#: What stands at the top of a configuration, Hydra's own settings apart.
KEYS = (*GROUPS, "seed", "data", *Options.__dataclass_fields__)
_CONF = Path(__file__).parent / "conf"
#: Of Hydra's own settings: what OmegaConf says of a value that cannot be -> what it should be.
_REASONS = (
    (r"expected one of \[(.*?)\]", r"should be one of \1"),
    (r"<enum 'RunMode'>", "should be one of RUN, MULTIRUN"),
    (r"Cannot convert '\w+' to string", "should be a single value"),
    (r"is not Optional", "needs a value"),
    (r"could not be converted to (?:Integer|int)", "should be a whole number"),
    (r"could not be converted to Float", "should be a number"),
    (r"is not a valid bool", "should be true or false"),
    (r"Cannot assign \w+ to Dict|is not a subclass of|Cannot merge DictConfig", "should be '{NAME: VALUE}'"),
    (r"[Cc]annot assign \w+ to List|is not a (?:list|ListConfig)", "should be a list, as in '[VALUE]'"),
)


def explain(error: Exception, conf: Path) -> str:
    """A Hydra or OmegaConf error in one line: key, value, what is allowed.

    Args:
        conf: folder of YAMLs.
    """
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
    text = "\n".join(filter(None, [str(error), str(cause) if cause else ""])).strip()
    if text.startswith("Cannot find primary config"):
        name = getattr(error, "missing_cfg_file", "")
        return f"--config-name {name}: no such file; name one of {_CONF.name}/, or give --config-dir FOLDER"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_such_choice(error.missing_cfg_file, error.options or [])
    signs = (r"is not in struct\s+full_key: (\S+)", r"Could not override '([^']+)'")
    if match := next(filter(None, (re.search(sign, text) for sign in signs)), None):
        return _not_listed(match[1], cause) or _no_such_key(match[1], conf)
    if match := re.search(r"nterpolation (?:key )?'(?:\$\{)?([^'}]+)\}?'", text):
        return f"${{{match[1]}}}: no such key, whose value could be taken; `--cfg job` prints all keys"
    if text.startswith("Primary config"):
        return "--config-path: no such folder; --config-dir FOLDER adds YAML files of your own"
    if match := re.match(r"Error merging override (.+)\s+(.+)", text):
        return _cannot_be_set(match[1].strip(), match[2])
    return " ".join(text.split())


def _cannot_be_set(word: str, said: str) -> str:
    """Why a setting of Hydra's own cannot have a value, by what OmegaConf says of it."""
    reasons = (match.expand(reason) for sign, reason in _REASONS if (match := re.search(sign, said)))
    return f"{word}: {next(reasons, said)}"


def explain_yaml(error: Exception) -> str:
    """Why a file of somebody's cannot be read as YAML, in one line."""
    if isinstance(error, RecursionError):
        return "the defaults of a YAML file lead back to it; leave one of them out"
    kind = "is not in UTF-8" if isinstance(error, UnicodeDecodeError) else "cannot be read"
    return f"a YAML file {kind}: {' '.join(str(error).split())}"


def _no_such_choice(file: str, known: Sequence[str]) -> str:
    group = next((each for each in GROUPS if file.startswith(f"{each}/")), file.rpartition("/")[0])
    choice = file.removeprefix(f"{group}/")
    known = known or choices_of(group)
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


def choices_of(group: str) -> list[str]:
    """The YAMLs of a group that are installed with the package."""
    return sorted(file.stem for file in (_CONF / group).glob("*.yaml"))


def did_you_mean(key: str, conf: Path = _CONF) -> str:
    """The known key that is like one that is not known, as a question; empty where none is."""
    group, _, name = key.partition(".")
    if not name:
        close = difflib.get_close_matches(group, KEYS, n=1)
        return f"did you mean {close[0]}? " if close else ""
    if group not in (*CONFIG_GROUPS, REQUIRE):
        return did_you_mean(group, conf)
    close = difflib.get_close_matches(name, {knob for knobs in _knobs(group, conf).values() for knob in knobs}, n=1)
    return f"did you mean {group}.{close[0]}? " if close else ""
