"""The definitions that some code uses, wherever they are, found without importing anything.

What is found is rather too much than too little:

- a class that is used counts with all of its members. Of what a function is handed, methods and constants count whose
  names are read as attributes of anything; all of them if it extends a class of a library, which may call them. What
  it holds, and how that was checked, does not count: whoever hands it has its values;
- where a module is imported, whatever it does counts too: statements other than definitions, and definitions that a
  decorator may register somewhere;
- a module that is used as an object, or imported and not used, counts as a whole.

Names that are put together while the program runs are not followed.
"""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bitsweep.runtime.definitions import Definition, Module, Target, read_module
from bitsweep.runtime.module_files import PYTHON, module_file, searched_folders, version_of_module


class Stamp(tuple[int, ...]):
    """Time of change, size, time of change of these, and number of a file."""


class CodeUsed:
    """What a name of a module uses, a function for instance that is handed instances of some classes.

    Attributes:
        files: the files that were read.
        packages: modules at the top, without what is in them, that were looked for.
    """

    def __init__(self, module: str, name: str, *handed: type) -> None:
        self.files: dict[Path, Stamp] = {}
        self.packages: set[str] = set()
        self._definitions: dict[Definition, Module] = {}
        self._versions = {PYTHON}
        self._modules: dict[str, Module | None] = {}
        self._waiting: list[Definition] = []
        self._mentioned: set[str] = set()
        self._if_mentioned: dict[str, list[tuple[Definition, Module]]] = {}
        self._entered: set[tuple[str, tuple[str, ...], frozenset[str] | None]] = set()
        self._executed: set[str] = set()
        self._enter((module, None), (name,))
        for kind in handed:
            versions = {each: self._version(each.__module__) for each in kind.__mro__}
            # A library may call whatever members it knows of.
            extends_library = any(version not in (None, PYTHON) for version in versions.values())
            fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
            held = None if extends_library else frozenset(field.name for field in fields)
            for each in kind.__mro__:
                self._enter((each.__module__, None), (outermost(each),), held=held)
        while self._waiting:
            self._follow(self._waiting.pop())

    def found(self) -> list[tuple[str, ...]]:
        """Definitions, files that are no Python source, and versions; each with what tells it from another."""
        definitions = ((each.module, each.name, each.digest) for each in self._definitions)
        opaque = ((each.name, each.opaque) for each in self._modules.values() if each and each.opaque)
        return sorted([*definitions, *opaque, *((version,) for version in self._versions)])

    @property
    def folders(self) -> set[Path]:
        """Where modules were looked for: another file there may be one of them, or stand before it."""
        found = (searched_folders(name) for name in self._modules if version_of_module(name) is None)
        return set[Path]().union(*found)

    def _follow(self, definition: Definition) -> None:
        for name in definition.mentions - self._mentioned:
            self._mentioned.add(name)
            for member, module in self._if_mentioned.pop(name, ()):
                self._take(member, module)
        for path in definition.uses:
            self._look_up(path, definition)
        used = {head for head, *_ in definition.uses}
        for bound, target in definition.imports.items():
            if bound not in used:
                self._enter(target)

    def _look_up(self, path: tuple[str, ...], user: Definition) -> None:
        """Take what a dotted name means to the definition that uses it, if that is more than a variable of its own."""
        head, *rest = path
        module = self._definitions[user]
        if head in user.imports:
            self._enter(user.imports[head], tuple(rest))
        elif head in module.defined or head in module.imported:
            self._enter((module.name, None), path)
        else:
            for star in module.stars:
                if found := self._module(star):
                    if head in found.defined or head in found.imported or found.stars:
                        self._enter((star, None), path)
                else:
                    self._enter((star, None))

    def _enter(self, target: Target, path: tuple[str, ...] = (), *, held: frozenset[str] | None = None) -> None:
        """Take what a dotted name means in a module.

        Args:
            held: of a class of what is handed, the names of its fields; None if the class counts with all members.
        """
        name, attribute = target
        path = (attribute, *path) if attribute else path
        if (name, path, held) in self._entered:
            return
        self._entered.add((name, path, held))
        if version := self._version(name):
            self._versions.add(version)
            return
        module = self._execute(name)
        if module is None:
            self._versions.add(f"{name} absent")
            return
        first, rest = (path[0], path[1:]) if path else ("", ())
        if first in module.defined or first in module.imported:
            for definition in module.defined.get(first, ()):
                self._take(definition, module, held=held)
            for imported in module.imported.get(first, ()):
                self._enter(imported, rest, held=held)
        elif first and self._module(f"{name}.{first}"):
            self._enter((f"{name}.{first}", None), rest, held=held)
        else:
            # It is used as an object, or makes its names while it is imported, or takes them from others.
            for star in module.stars:
                self._enter((star, None), path)
            for definition in _all_of(module):
                self._take(definition, module)

    def _take(self, definition: Definition, module: Module, *, held: frozenset[str] | None = None) -> None:
        if definition not in self._definitions:
            self._definitions[definition] = module
            self._waiting.append(definition)
        for base in definition.bases if held is None else ():
            self._look_up(base, definition)
        for decorator in definition.decorators:
            if decorator and (held is None or not self._makes_dataclasses(decorator, module)):
                self._look_up(decorator, definition)
        for member in definition.members:
            name = member.name.rpartition(".")[2]
            if held is None or not name or name.startswith("__") or (name in self._mentioned and name not in held):
                self._take(member, module)
            elif name not in held:
                self._if_mentioned.setdefault(name, []).append((member, module))

    def _execute(self, name: str) -> Module | None:
        """The module of a name, after taking what it does when it and the packages around it are imported."""
        module = self._module(name)
        if module is None or name in self._executed:
            return module
        self._executed.add(name)
        if package := name.rpartition(".")[0]:
            self._execute(package)
        for definition in module.effects:
            self._take(definition, module)
        for definition in _all_of(module):
            if any(self._registers(decorator, module) for decorator in definition.decorators):
                self._take(definition, module)
        for target in module.unused:
            self._enter(target)
        for imported in module.executed:
            if self._version(imported) is None:
                self._execute(imported)
        return module

    def _registers(self, decorator: tuple[str, ...], module: Module) -> bool:
        """Whether a decorator may do more than return what it is given, or something in its place."""
        head = decorator[0] if decorator else ""
        if head and head not in module.defined and head not in module.imported:
            return False  # a builtin
        if head in module.imported and all(self._version(each) == PYTHON for each, _ in module.imported[head]):
            return False
        found = self._source_of(decorator, module) if head else None
        return found is None or self._reaches_source(*found)

    def _makes_dataclasses(self, decorator: tuple[str, ...], module: Module) -> bool:
        """Whether a decorator says that it does."""
        definitions, _ = self._source_of(decorator, module) or ([], module)
        return any(name[-1:] == ("dataclass_transform",) for each in definitions for name in each.decorators)

    def _source_of(self, name: tuple[str, ...], module: Module) -> tuple[list[Definition], Module] | None:
        """The definitions of a name that a module defines or imports from the source that defines it."""
        head, *attributes = name
        if attributes:
            return None
        if head in module.defined:
            return module.defined[head], module
        for source, attribute in module.imported.get(head, ()):
            found = self._module(source)
            if found and attribute in found.defined:
                return found.defined[attribute], found
        return None

    def _reaches_source(self, definitions: Iterable[Definition], module: Module) -> bool:
        """Whether definitions may change anything in the user's files or in this package."""
        heads = {head for definition in definitions for head, *_ in definition.uses}
        sources = (source for head in heads for source, _ in module.imported.get(head, ()))
        return not heads.isdisjoint(module.defined) or any(self._version(source) is None for source in sources)

    def _module(self, name: str) -> Module | None:
        if name not in self._modules:
            file = module_file(name) if self._version(name) is None else None
            if file:
                self.files[file] = stamp(file)
            self._modules[name] = read_module(name, file, self.files[file]) if file else None
        return self._modules[name]

    def _version(self, name: str) -> str | None:
        self.packages.add(name.partition(".")[0])
        return version_of_module(name)


def _all_of(module: Module) -> list[Definition]:
    return [definition for named in module.defined.values() for definition in named]


def outermost(defined: Callable[..., Any]) -> str:
    """The name at the top of the module that a function or class is, or is in."""
    return defined.__qualname__.partition(".")[0]


def stamp(file: Path) -> Stamp:
    """What changes with a file or folder; zeros if it is gone."""
    try:
        found = file.stat()
    except OSError:
        return Stamp((0, 0, 0, 0))
    return Stamp((found.st_mtime_ns, found.st_size, found.st_ctime_ns, found.st_ino))
