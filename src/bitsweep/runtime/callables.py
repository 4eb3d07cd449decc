"""Whether a name of a module can be called, and with what, told from the source, which is not run."""

import contextlib
import importlib
from collections.abc import Iterator

from bitsweep.runtime.code_used import stamp
from bitsweep.runtime.definitions import Module, read_module
from bitsweep.runtime.module_files import PYTHON, module_file, version_of_module
from bitsweep.runtime.syntax import Signature

#: What makes names that no statement defines, where a module calls it while it is imported.
_MAKES_NAMES = frozenset({"exec", "globals", "locals", "vars", "setattr"})


def may_be_called(module: str, name: str) -> bool:
    """Whether a module may have something of that name that can be called; where its source does not tell, it may."""
    return _may_be_called(module, name, set())


def names_of(module: str) -> list[str]:
    """What a module defines that may be called, and what modules define that it takes everything of."""
    return list(dict.fromkeys(_names_of(module, set())))


def signature_of_name(module: str, name: str) -> Signature | None:
    """What a function, or the class of a name, takes; None where the source does not tell."""
    return _signature(module, name, set())


def _signature(module: str, name: str, asked: set[tuple[str, str]]) -> Signature | None:
    source = None if (module, name) in asked else _source(module)
    asked.add((module, name))
    if source is None:
        return None
    if name not in source.defined:
        origins = source.imported.get(name, [])
        origin, attribute = origins[0] if len(origins) == 1 else ("", None)
        return _signature(origin, attribute, asked) if attribute else None
    if name in source.imported or len(source.defined[name]) != 1:
        return None
    (found,) = source.defined[name]
    if found.decorators or found.signature:
        return None if found.decorators else found.signature
    makers = [each for each in found.members if each.name.endswith((".__init__", ".__new__"))]
    if makers:
        return makers[0].signature if len(makers) == 1 and not makers[0].decorators else None
    return _signature(module, found.bases[0][0], asked) if len(found.bases) == 1 == len(found.bases[0]) else None


def _names_of(module: str, asked: set[str]) -> Iterator[str]:
    source = None if module in asked else _source(module)
    asked.add(module)
    for name, found in source.defined.items() if source else ():
        if any(each.name and not each.is_data for each in found) and not name.startswith("_"):
            yield name
    for origin in source.stars if source else ():
        yield from _names_of(origin, asked)


def _may_be_called(module: str, name: str, asked: set[tuple[str, str]]) -> bool:
    if (module, name) in asked:
        return False
    asked.add((module, name))
    source = _source(module)
    if source is None and version_of_module(module) == PYTHON:  # built in, or a module under a second name
        with contextlib.suppress(ImportError):
            return callable(getattr(importlib.import_module(module), name, None))
    if source is None or source.opaque:
        return True
    if name in source.defined:
        return not all(each.is_data for each in source.defined[name])
    if name in source.imported:
        named = [(origin, attribute) for origin, attribute in source.imported[name] if attribute is not None]
        return any(_may_be_called(origin, attribute, asked) for origin, attribute in named)
    if any(_may_be_called(origin, name, asked) for origin in source.stars):
        return True
    if module_file(f"{module}.{name}"):
        return False
    return "__getattr__" in source.defined or _makes_names(source)


def _makes_names(source: Module) -> bool:
    definitions = (each for found in source.defined.values() for each in found)
    done, called = ({head for each in some for head, *_ in each.uses} for some in (source.effects, definitions))
    return bool(done & _MAKES_NAMES) or "globals" in called


def _source(module: str) -> Module | None:
    """What the source of a module says; None where it has none."""
    file = module_file(module)
    return read_module(module, file, stamp(file)) if file and file.suffix == ".py" else None
