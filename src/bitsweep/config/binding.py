"""From a composed configuration to checked choices."""

import dataclasses
import difflib
import importlib
import inspect
import re
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

import pydantic

from bitsweep.config.backend import Backend
from bitsweep.config.dataset import Dataset
from bitsweep.config.method import Method
from bitsweep.config.model import Model
from bitsweep.config.precision import Precision
from bitsweep.config.protocol import MeasurementProtocol
from bitsweep.config.recipe import Recipe
from bitsweep.config.target import Target
from bitsweep.errors import ConfigError

#: Config group -> what its choices are.
CONFIG_GROUPS: dict[str, type] = {
    "model": Model,
    "method": Method,
    "precision": Precision,
    "backend": Backend,
    "dataset": Dataset,
    "train": Recipe,
    "protocol": MeasurementProtocol,
    "target": Target,
}
#: The group of requirements, which are no part of what a cell is.
REQUIRE = "require"

#: Names of types by which Pydantic tells the members of a union apart.
_MEMBERS = re.compile(r"(literal|tuple|list|dict|function-|constrained-).*\[.*|Grid.*|str|int|float|bool|none")
#: What Pydantic calls a type, and how its values are written.
_WRITTEN = {"a valid tuple": "a list, as in [A,B]", "a valid dictionary": "names with values, as in {name: VALUE}"}


def construct(group: str, node: Mapping[str, Any], kind: type) -> Any:
    """The choice that a mapping with ``_target_`` and knobs describes.

    Raises:
        ConfigError: naming key, value and what is allowed.
    """
    knobs = dict(node)
    target = str(knobs.pop("_target_", ""))
    cls = _located(group, target)
    if not (inspect.isclass(cls) and issubclass(cls, kind)):
        raise ConfigError(f"{group}._target_={target}: not a {kind.__name__}; see the other YAMLs of conf/{group}/")
    try:
        return cls(**knobs)
    except pydantic.ValidationError as error:
        raise invalid(cls, error, group) from None


def _located(group: str, target: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        missing = getattr(error, "name", None)
        if isinstance(error, ModuleNotFoundError) and missing and not f"{module}.".startswith(f"{missing}."):
            reason = f"its module needs {missing}, which is not installed"
        else:
            reason = f"no such class; see the other YAMLs of conf/{group}/"
    except Exception as error:  # whatever a module of somebody else's raises
        reason = f"its module cannot be imported: {type(error).__name__}: {error}"
    raise ConfigError(f"{group}._target_={target}: {reason}")


def invalid(cls: Any, error: pydantic.ValidationError, *group: str) -> ConfigError:
    """The first thing that is wrong with the knobs of a class, in one line: key, value, what is allowed."""
    # A misspelt name explains why another is missing.
    first = min(error.errors(), key=lambda each: each["type"] != "unexpected_keyword_argument")
    # Pydantic names the members of a union inside the location; they are not part of the key.
    location = [str(part) for part in first["loc"] if not _MEMBERS.fullmatch(str(part))]
    key = ".".join([*group, *location])
    if first["type"] == "unexpected_keyword_argument":
        fields = [field.name for field in dataclasses.fields(_holder(cls, location))]
        close = difflib.get_close_matches(location[-1], fields, n=1)
        named = [*group, *location[:-1], *close]
        hint = f"did you mean {'.'.join(named)}?" if close else f"choose from {', '.join(fields)}"
        return ConfigError(f"{key}: no such key; {hint}")
    if first["type"].startswith("missing"):
        plus = "+" if group else ""  # a YAML that listed it would give it a value
        return ConfigError(f"{key}: a value is required; give one with {plus}{key}=VALUE")
    if not location:  # keys that do not go together name themselves
        return ConfigError(".".join([*group, first["msg"].removeprefix("Value error, ")]))
    # A value that fits no member of a union has an error for each of them.
    alike = [each["msg"] for each in error.errors() if repr(each["input"]) == repr(first["input"])]
    messages = [_said(message.removeprefix("Value error, ").removeprefix("Input ").rstrip(".")) for message in alike]
    return ConfigError(f"{key}={first['input']}: {', or '.join(dict.fromkeys(messages))}")


def _said(message: str) -> str:
    """What Pydantic says, in the words of a command line."""
    message = message.partition(", unable to parse ")[0]
    if items := re.match(r"\w+ should have at (least|most) (\d+) items? after validation", message):
        return f"should have at {items[1]} {items[2]} value{'s' * (items[2] != '1')}"
    for of_python, written in _WRITTEN.items():
        message = message.replace(of_python, written)
    return message


def _holder(cls: Any, location: list[str]) -> Any:
    """The class that a key is one of: that of the value that it is in, where values hold others."""
    for name in location[:-1]:
        hint = get_type_hints(cls).get(name)
        inner = next((each for each in (hint, *get_args(hint)) if dataclasses.is_dataclass(each)), None)
        cls = inner or cls
    return cls
