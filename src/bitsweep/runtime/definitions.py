"""What the statements of a module define, read from its source, which is not run.

Statements under ``TYPE_CHECKING`` do not count, nor those that are run only if the file is started as a program.
"""

import ast
import copy
import functools
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bitsweep.runtime.syntax import Facts, Signature, chain_of, is_never_true, signature_of, walk

#: A module and a name in it, or None for the module itself: what an import binds a name to.
Target = tuple[str, str | None]
_FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
_IMPORT = ast.Import | ast.ImportFrom
_DATA = (
    ast.Constant | ast.JoinedStr | ast.List | ast.Tuple | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Definition:
    """A statement at the top of a module or in a class; of a class statement, its head alone.

    Attributes:
        module: name of the module that it is in.
        name: what it defines, behind the class that it is in; empty if it only does something.
        digest: hash of its syntax tree.
        uses: names that it reads, with the attributes that are read of them: ``("a", "b", "c")`` is ``a.b.c``. What
            annotations of functions name does not count, nor the class of an error that is raised.
        mentions: names of attributes that it reads of anything, and strings, which may be such names.
        imports: what its own import statements bind.
        decorators: the names that it is decorated with; an empty one where that is no name.
        bases: the names that a class extends. Neither these nor its decorators are among what a class uses.
        is_data: whether it gives its names numbers, texts or containers that are written out: nothing that can be
            called.
        signature: of a function, or of a method without its first parameter.
        members: what stands in a class.
    """

    module: str
    name: str
    digest: str
    uses: frozenset[tuple[str, ...]]
    mentions: frozenset[str]
    imports: dict[str, Target]
    decorators: tuple[tuple[str, ...], ...] = ()
    bases: tuple[tuple[str, ...], ...] = ()
    is_data: bool = False
    signature: Signature | None = None
    members: "tuple[Definition, ...]" = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Module:
    """What a source file says.

    Attributes:
        defined: name -> the statements that define it.
        imported: name -> what imports bind it to.
        effects: statements that do something when the module is imported, such as registering.
        executed: modules that are imported with it.
        unused: what it imports and does not use, other than to offer it: such imports are for their effects.
        stars: modules whose names are all imported.
        opaque: hash of a file that is not Python source.
    """

    name: str
    defined: dict[str, list[Definition]] = field(default_factory=dict)
    imported: dict[str, list[Target]] = field(default_factory=dict)
    effects: list[Definition] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)
    unused: list[Target] = field(default_factory=list)
    stars: list[str] = field(default_factory=list)
    opaque: str = ""


@functools.lru_cache(maxsize=4096)
def read_module(name: str, file: Path, stamp: tuple[int, ...]) -> Module:
    """Read a module.

    Args:
        stamp: what changes with the file, for which the result is kept.
    """
    content = file.read_bytes()
    try:
        return _Reader(name, is_package=file.name == "__init__.py").read(ast.parse(content))
    except (SyntaxError, ValueError, RecursionError):
        return Module(name=name, opaque=hashlib.sha256(content).hexdigest())


class _Reader:
    def __init__(self, name: str, *, is_package: bool) -> None:
        self.module = Module(name=name)
        self._is_package = is_package

    def read(self, tree: ast.Module) -> Module:
        loaded: set[str] = set()
        for node in walk(tree):
            match node:
                case ast.Name(id=name, ctx=ast.Load()):
                    loaded.add(name)
                case ast.Constant(value=str(text)):
                    loaded.update(re.findall(r"\w+", text))
        self._statements(tree.body)
        if not self._is_package:
            for bound, targets in self.module.imported.items():
                self.module.unused.extend(targets if bound not in loaded else ())
        return self.module

    def _statements(self, body: Iterable[ast.stmt]) -> None:
        for node in body:
            match node:
                case ast.Import() | ast.ImportFrom():
                    self._import(node)
                case ast.If() if is_never_true(node.test):
                    self._statements(node.orelse)
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    self._define([node.name], self._definition(node, node.name))
                case ast.Assign() | ast.AnnAssign():
                    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                    names = [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
                    plain = all(isinstance(target, ast.Name | ast.Tuple | ast.List) for target in targets)
                    defined = self._definition(node, ", ".join(names))
                    self._define(names, defined)
                    if not plain:
                        self.module.effects.append(defined)
                case ast.Pass() | ast.Expr(value=ast.Constant()):
                    pass
                case _:
                    self._compound(node)

    def _compound(self, node: ast.stmt) -> None:
        """A statement that does something, and may define names and import modules too."""
        effect = self._definition(node, "")
        self.module.effects.append(effect)
        for inner in ast.walk(node):
            match inner:
                case ast.Import() | ast.ImportFrom():
                    self._import(inner)
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    self._define([inner.name], effect)
                case ast.Name(ctx=ast.Store()):
                    self._define([inner.id], effect)

    def _define(self, names: Iterable[str], definition: Definition) -> None:
        for name in names:
            self.module.defined.setdefault(name, []).append(definition)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        for bound, target in self._bound(node):
            if bound == "*":
                self.module.stars.append(target[0])
            else:
                self.module.imported.setdefault(bound, []).append(target)
        if isinstance(node, ast.Import):
            self.module.executed.extend(alias.name for alias in node.names)
        else:
            source = self._source_of(node)
            self.module.executed.extend([source, *(f"{source}.{alias.name}" for alias in node.names)])

    def _definition(self, node: ast.stmt, name: str, *, in_class: bool = False) -> Definition:
        decorators: list[ast.expr] = []
        bases: list[tuple[str, ...]] = []
        members: tuple[Definition, ...] = ()
        if isinstance(node, _FUNCTION | ast.ClassDef):
            decorators = [each.func if isinstance(each, ast.Call) else each for each in node.decorator_list]
        if isinstance(node, ast.ClassDef):
            members = tuple(self._members(node))
            bases = [chain for each in node.bases if (chain := chain_of(each))]
            node = copy.copy(node)
            node.body = []
        facts = Facts(node)
        apart = {*bases, *map(chain_of, decorators)} if isinstance(node, ast.ClassDef) else set()
        own = facts.imports if isinstance(node, _FUNCTION | _IMPORT) else []
        return Definition(
            module=self.module.name,
            name=name,
            digest=hashlib.sha256("\n".join(facts.text).encode()).hexdigest(),
            uses=frozenset(facts.uses - apart),
            mentions=frozenset(facts.mentions),
            imports={bound: target for each in own for bound, target in self._bound(each)},
            decorators=tuple(map(chain_of, decorators)),
            bases=tuple(bases),
            is_data=isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, _DATA),
            signature=signature_of(node, bound=in_class) if isinstance(node, _FUNCTION) else None,
            members=members,
        )

    def _members(self, node: ast.ClassDef) -> Iterator[Definition]:
        for each in node.body:
            match each:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    name = each.name
                case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                    pass
                case ast.Pass() | ast.Expr(value=ast.Constant()):
                    continue
                case _:
                    name = ""
            yield self._definition(each, f"{node.name}.{name}", in_class=True)

    def _bound(self, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Target]]:
        for alias in node.names:
            if isinstance(node, ast.ImportFrom):
                yield alias.asname or alias.name, (self._source_of(node), alias.name)
            elif alias.asname:
                yield alias.asname, (alias.name, None)
            else:
                top = alias.name.partition(".")[0]
                yield top, (top, None)

    def _source_of(self, node: ast.ImportFrom) -> str:
        """Name of the module that a ``from`` import names, perhaps relatively."""
        if not node.level:
            return node.module or ""
        parts = self.module.name.split(".")
        parts = parts[: len(parts) - node.level + self._is_package]
        return ".".join([*parts, *([node.module] if node.module else [])])
