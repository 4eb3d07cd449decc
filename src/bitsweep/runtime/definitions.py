"""What the statements of a module define, and what each of them uses: read from its source, which is not run.

Not part of a definition are comments, docstrings, the texts of errors that it raises, and what stands under
``TYPE_CHECKING`` or is run only if the file is started as a program.
"""

import ast
import copy
import functools
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

#: A module and a name in it, or None for the module itself: what an import binds a name to.
Target = tuple[str, str | None]
_FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
_IMPORT = ast.Import | ast.ImportFrom


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
def read_module(name: str, file: Path, stamp: tuple[int, int]) -> Module:
    """Read a module.

    Args:
        stamp: time of change and size of the file, for which the result is kept.
    """
    content = file.read_bytes()
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return Module(name=name, opaque=hashlib.sha256(content).hexdigest())
    return _Reader(name, is_package=file.name == "__init__.py").read(tree)


class _Reader:
    def __init__(self, name: str, *, is_package: bool) -> None:
        self.module = Module(name=name)
        self._is_package = is_package

    def read(self, tree: ast.Module) -> Module:
        nodes = list(ast.walk(tree))
        loaded = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        strings = (node.value for node in nodes if isinstance(node, ast.Constant))
        loaded.update(word for text in strings if isinstance(text, str) for word in re.findall(r"\w+", text))
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
                case ast.If() if _is_never_true(node.test):
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

    def _definition(self, node: ast.stmt, name: str) -> Definition:
        node = _Silenced().visit(node)
        decorators: list[ast.expr] = []
        bases: list[tuple[str, ...]] = []
        members: tuple[Definition, ...] = ()
        if isinstance(node, _FUNCTION | ast.ClassDef):
            decorators = [each.func if isinstance(each, ast.Call) else each for each in node.decorator_list]
        if isinstance(node, ast.ClassDef):
            members = tuple(self._members(node))
            bases = [chain for each in node.bases if (chain := _chain(each))]
            node = copy.copy(node)
            node.body = []
        computing = list(_computing(node))
        apart = {*bases, *map(_chain, decorators)} if isinstance(node, ast.ClassDef) else set()
        own = [each for each in computing if isinstance(node, _FUNCTION | _IMPORT) and isinstance(each, _IMPORT)]
        return Definition(
            module=self.module.name,
            name=name,
            digest=hashlib.sha256(ast.dump(node).encode()).hexdigest(),
            uses=frozenset(_longest(computing)) - apart,
            mentions=frozenset(_mentioned(computing)),
            imports={bound: target for each in own for bound, target in self._bound(each)},
            decorators=tuple(map(_chain, decorators)),
            bases=tuple(bases),
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
            yield self._definition(each, f"{node.name}.{name}")

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


class _Silenced(ast.NodeTransformer):
    """Takes out, in place, what is said and not done: docstrings, and the texts of errors."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        body = getattr(node, "body", None)
        if isinstance(node, _FUNCTION | ast.ClassDef) and isinstance(body, list) and body and _is_text(body[0]):
            del body[0]
        return super().generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):
            node.exc.args = [each for each in node.exc.args if not _is_message(each)]
        return self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        node.msg = None
        return self.generic_visit(node)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_message(node: ast.expr) -> bool:
    match node:
        case ast.JoinedStr():
            return True
        case ast.Constant(value=value):
            return isinstance(value, str)
        case ast.BinOp(left=left, right=right):
            return _is_message(left) or _is_message(right)
    return False


def _computing(root: ast.AST) -> Iterator[ast.AST]:
    """All nodes but annotations of functions and of their variables, types of errors raised, and type checking."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        yield node
        skipped: set[str] = set()
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                skipped = {"returns"}
            case ast.arg():
                skipped = {"annotation"}
            case ast.AnnAssign() if node is not root:
                skipped = {"annotation"}
            case ast.If() if _is_never_true(node.test):
                skipped = {"test", "body"}
            case ast.Raise(exc=ast.Call() as error):
                waiting += [*error.args, *error.keywords]
                skipped = {"exc"}
            case ast.Raise():
                skipped = {"exc"}
        for name, value in ast.iter_fields(node):
            if name not in skipped:
                waiting += [
                    each for each in (value if isinstance(value, list) else [value]) if isinstance(each, ast.AST)
                ]


def _longest(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, ...]]:
    """Names that are read, each as far as attributes of attributes are."""
    inner: set[int] = set()
    for node in nodes:  # an attribute comes before what it is read of
        if isinstance(node, ast.Attribute | ast.Name) and id(node) not in inner and (chain := _chain(node)):
            yield chain
        if isinstance(node, ast.Attribute):
            inner.add(id(node.value))


def _chain(node: ast.AST) -> tuple[str, ...]:
    """A dotted name; empty for anything else."""
    match node:
        case ast.Name(id=name, ctx=ast.Load()):
            return (name,)
        case ast.Attribute(value=value, attr=attribute) if chain := _chain(value):
            return (*chain, attribute)
    return ()


def _mentioned(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        match node:
            case ast.Attribute(attr=name) | ast.Constant(value=str(name)):
                yield name
            case ast.MatchClass(kwd_attrs=names):
                yield from names


def _is_never_true(test: ast.expr) -> bool:
    """Whether a condition holds for type checkers only, or only in a file that is started as a program."""
    match test:
        case ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"):
            return True
        case ast.Compare(left=ast.Name(id="__name__"), ops=[ast.Eq()], comparators=[ast.Constant(value="__main__")]):
            return True
    return False
