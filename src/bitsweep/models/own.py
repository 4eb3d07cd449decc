"""A network of the user's own: a class or a function in a file, or in an installed package."""

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from bitsweep.config.configurable import Place, configurable
from bitsweep.config.model import Model
from bitsweep.errors import ConfigError
from bitsweep.runtime import fingerprint
from bitsweep.runtime.module_files import is_absent, module_file

if TYPE_CHECKING:
    import torch


@final
@configurable
class OwnModel(Model):
    """What a callable makes. Its code is part of every key, with all that it uses from the user's files.

    Attributes:
        factory: ``nets.py:MyNet``, a file, from the working directory or absolute, and a name in it; or
            ``package.module:name``.
        arguments: what it is called with, by keyword; ``num_classes`` besides, if it has such a parameter. Without one
            the head is made anew where it has another number of outputs than the data set has classes.
    """

    factory: Place = ""
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def check(self) -> None:
        """Whether there is such a file or module."""
        self._module()

    def source(self) -> str:
        """The code of the factory, and what is in the file of weights."""
        module, name = self._module()
        return fingerprint.digest(fingerprint.code_of(module, name), super().source())

    def build(self, num_classes: int) -> "torch.nn.Module":
        """What the factory makes, on the CPU.

        Raises:
            ConfigError: there is no such factory, it fails, or it makes something else than a network.
        """
        import torch

        factory = self._factory()
        arguments = dict(self.arguments)
        if "num_classes" in inspect.signature(factory).parameters:
            arguments.setdefault("num_classes", num_classes)
        try:
            network = factory(**arguments)
        except Exception as error:  # whatever code of somebody else's raises
            raise ConfigError(f"model.factory={self.factory}: {type(error).__name__}: {error}") from error
        if not isinstance(network, torch.nn.Module):
            raise ConfigError(f"model.factory={self.factory}: makes a {type(network).__name__}, no torch.nn.Module")
        return network

    def _factory(self) -> Callable[..., Any]:
        module, name = self._module()
        try:
            found = importlib.import_module(module)
        except Exception as error:  # whatever code of somebody else's raises
            raise ConfigError(
                f"model.factory={self.factory}: {module} cannot be imported: {type(error).__name__}: {error}"
            ) from error
        factory = getattr(found, name, None)
        if not callable(factory):
            known = [each for each, value in vars(found).items() if callable(value) and not each.startswith("_")]
            raise ConfigError(f"model.factory={self.factory}: no such callable in {module}; it has {', '.join(known)}")
        return factory  # type: ignore[no-any-return]

    def _module(self) -> tuple[str, str]:
        """Name of the module, importable from now on, and name in it."""
        place, _, name = self.factory.rpartition(":")
        if not place or not name.isidentifier():
            raise ConfigError(
                f"model.factory={self.factory}: write a file and a name in it, as in nets.py:MyNet, or a module and a "
                "name, as in package.module:MyNet"
            )
        if not place.endswith(".py"):
            if is_absent(place):
                raise ConfigError(f"model.factory={self.factory}: there is no module {place}; is it installed?")
            return place, name
        file = Path(place).expanduser().absolute()
        if not file.is_file():
            raise ConfigError(f"model.factory={self.factory}: there is no file {file}")
        if str(file.parent) not in sys.path:
            sys.path.insert(0, str(file.parent))
        if (found := module_file(file.stem)) is None or not found.samefile(file):
            raise ConfigError(f"model.factory={self.factory}: another module has the name {file.stem}; rename the file")
        return file.stem, name
