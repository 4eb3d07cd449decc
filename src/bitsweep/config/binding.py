"""From a composed configuration to checked choices."""

import dataclasses
import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

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
    first = error.errors()[0]
    # Pydantic names the members of a union inside the location; they are not part of the key.
    location = [str(part) for part in first["loc"] if not str(part).startswith(("literal[", "Grid"))]
    key = ".".join([*group, *location])
    if first["type"] == "unexpected_keyword_argument":
        fields = [field.name for field in dataclasses.fields(_holder(cls, location))]
        close = difflib.get_close_matches(location[-1], fields, n=1)
        named = [*group, *location[:-1], *close]
        hint = f"did you mean {'.'.join(named)}?" if close else f"choose from {', '.join(fields)}"
        return ConfigError(f"{key}: no such key; {hint}")
    if first["type"].startswith("missing"):
        return ConfigError(f"{key}: a value is required; give one with {key}=VALUE")
    if not location:  # keys that do not go together name themselves
        return ConfigError(".".join([*group, first["msg"].removeprefix("Value error, ")]))
    # A value that fits no member of a union has an error for each of them.
    alike = [each["msg"] for each in error.errors() if repr(each["input"]) == repr(first["input"])]
    messages = [message.removeprefix("Value error, ").removeprefix("Input ").rstrip(".") for message in alike]
    return ConfigError(f"{key}={first['input']}: {', or '.join(dict.fromkeys(messages))}")


def _holder(cls: Any, location: list[str]) -> Any:
    """The class that a key is one of: that of the value that it is in, where values hold others."""
    for name in location[:-1]:
        inner = type(next((field.default for field in dataclasses.fields(cls) if field.name == name), None))
        cls = inner if dataclasses.is_dataclass(inner) else cls
    return cls
