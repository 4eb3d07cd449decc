"""Callables of the user's own, named by ``file.py:name`` or ``package.module:name``."""

import ast
import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitsweep.errors import ConfigError, first_line
from bitsweep.runtime import fingerprint
from bitsweep.runtime.callables import may_be_called, names_of, signature_of_name
from bitsweep.runtime.module_files import is_absent, module_file
from bitsweep.text import some


@dataclass(frozen=True)
class Factory:
    """A class or a function, found when it is asked for.

    Attributes:
        key: of the setting that names it.
        named: its value: a file, from the working directory or absolute, and a name in it; or a module and a name.
    """

    key: str
    named: str

    def check(self) -> None:
        """Whether there is such a file or module, and something in it that may be called: nothing is run.

        Raises:
            ConfigError: there is none, or it is no Python.
        """
        module, name = self._module()
        file = module_file(module)
        try:
            ast.parse(file.read_bytes() if file and file.suffix == ".py" else b"")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            why = f"line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else first_line(error)
            raise ConfigError(f"{self.key}={self.named}: {file} is no Python: {why}") from error
        if not may_be_called(module, name):
            raise self._absent(module, names_of(module))

    def check_arguments(self, key: str, arguments: Mapping[str, Any], *, offered: Collection[str] = ()) -> None:
        """Whether it takes arguments of these names, as far as its source tells: nothing is run.

        Args:
            key: of the setting that gives them.
            offered: what it gets besides where it takes it.

        Raises:
            ConfigError: one is not taken, or one is missing.
        """
        module, name = self._module()
        signature = signature_of_name(module, name)
        if signature is None or signature.open:
            return
        for unknown in (each for each in arguments if each not in signature.names):
            close = difflib.get_close_matches(unknown, signature.names, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            takes = some(signature.names, 9) or "none"
            raise ConfigError(f"{key}.{unknown}: {self.named} has no such parameter; {hint}it has {takes}")
        if missing := [each for each in signature.names if each in signature.required - {*arguments, *offered}]:
            raise ConfigError(
                f"{key}: {self.named} needs {some(missing, 9)} too; give it, as in {key}={{{missing[0]}: 1}}"
            )

    def code(self) -> str:
        """A fingerprint of its code, with all that it uses from the user's files.

        Raises:
            ConfigError: as for `check`.
        """
        self.check()
        return fingerprint.code_of(*self._module())

    def make(self, arguments: Mapping[str, Any], **offered: Any) -> Any:
        """What it makes.

        Args:
            arguments: that it is called with, by keyword.
            offered: passed as well where it has parameters of these names.

        Raises:
            ConfigError: there is no such callable, or it fails.
        """
        factory = self.load()
        try:
            parameters = inspect.signature(factory).parameters
            return factory(**{name: value for name, value in offered.items() if name in parameters} | dict(arguments))
        except (Exception, SystemExit) as error:  # whatever code of somebody else's raises
            raise self.failed(error) from error

    def failed(self, error: BaseException) -> ConfigError:
        """What is said where code of its module failed."""
        return ConfigError(f"{self.key}={self.named}: {type(error).__name__}: {first_line(error)}")

    def load(self) -> Callable[..., Any]:
        """The callable itself.

        Raises:
            ConfigError: there is none, or its module cannot be imported.
        """
        module, name = self._module()
        try:
            found = importlib.import_module(module)
        except (Exception, SystemExit) as error:  # whatever code of somebody else's raises
            raise ConfigError(
                f"{self.key}={self.named}: {module} cannot be imported: {type(error).__name__}: {error}"
            ) from error
        factory = getattr(found, name, None)
        if not callable(factory):
            raise self._absent(module, [each for each, value in vars(found).items() if callable(value)])
        return factory  # type: ignore[no-any-return]

    def _absent(self, module: str, known: Iterable[str]) -> ConfigError:
        names = [each for each in known if not each.startswith("_")]
        return ConfigError(f"{self.key}={self.named}: no such callable in {module}; it has {some(names, 9) or 'none'}")

    def _module(self) -> tuple[str, str]:
        """Name of the module, importable from now on, and name in it."""
        place, _, name = self.named.rpartition(":")
        if not place or not name.isidentifier():
            raise ConfigError(
                f"{self.key}={self.named}: write a file and a name in it, as in mine.py:make, or a module and a name, "
                "as in package.module:make"
            )
        if not place.endswith(".py"):
            if place.partition(".")[0] in sys.stdlib_module_names:
                raise ConfigError(f"{self.key}={self.named}: {place} comes with Python; name a module or file of yours")
            if is_absent(place):
                raise ConfigError(f"{self.key}={self.named}: there is no module {place}; is it installed?")
            return place, name
        file = Path(place).expanduser().absolute()
        if not file.is_file():
            raise ConfigError(f"{self.key}={self.named}: there is no file {file}")
        if str(file.parent) not in sys.path:
            sys.path.insert(0, str(file.parent))
        if (found := module_file(file.stem)) is None or not found.samefile(file):
            raise ConfigError(f"{self.key}={self.named}: another module has the name {file.stem}; rename the file")
        return file.stem, name
