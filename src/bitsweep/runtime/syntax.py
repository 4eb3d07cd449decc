"""What a statement says and uses, from its syntax tree.

Comments, docstrings and the texts of errors that it raises do not count, nor what is for type checkers.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

#: Fields of each kind of node. Whether a name is read or written follows from where it stands.
_FIELDS: dict[type, tuple[str, ...]] = {
    kind: tuple(name for name in kind._fields if name != "ctx")
    for kind in vars(ast).values()
    if isinstance(kind, type) and issubclass(kind, ast.AST)
}
#: Kinds of nodes that say something beyond their parts.
_NOTED = frozenset({ast.Name, ast.Attribute, ast.Constant, ast.MatchClass, ast.Import, ast.ImportFrom})
#: Kinds of nodes of which a part does not count, or is said and not used.
_READ_IN_PART = frozenset(
    {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Raise, ast.If, ast.Assert, ast.arg, ast.AnnAssign}
)


class Facts:
    """What a statement says and uses, from one pass through its syntax tree.

    Attributes:
        text: the tree, line by line, without what is said and not done.
        uses, mentions: see `Definition`.
        imports: its import statements.
    """

    def __init__(self, root: ast.stmt) -> None:
        self.text: list[str] = []
        self.uses: set[tuple[str, ...]] = set()
        self.mentions: set[str] = set()
        self.imports: list[ast.Import | ast.ImportFrom] = []
        self._root = root
        self._read(root, follow=True)

    def _read(self, value: Any, *, follow: bool) -> None:
        """Record a node, a list of nodes or a constant.

        Args:
            follow: whether what it names is used, and not only said.
        """
        kind = type(value)
        if kind is list:
            self.text.append(f"{len(value)}:")
            for each in value:
                self._read(each, follow=follow)
        elif kind not in _FIELDS:
            self.text.append(repr(value))
        elif kind is ast.Attribute and (chain := chain_of(value)):
            self.text.append(".".join(chain))
            if follow:
                self.uses.add(chain)
                self.mentions.update(chain[1:])
        else:
            self.text.append(kind.__name__)
            if follow and kind in _NOTED:
                self._note(value)
            if kind in _READ_IN_PART:
                for name, part in self._parts(value):
                    self._read(part, follow=follow and not _is_only_said(value, name, of=self._root))
            else:
                for name in _FIELDS[kind]:
                    self._read(getattr(value, name, None), follow=follow)

    def _note(self, node: ast.AST) -> None:
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                self.uses.add((name,))
            case ast.Attribute(attr=name) | ast.Constant(value=str(name)):
                self.mentions.add(name)
            case ast.MatchClass(kwd_attrs=names):
                self.mentions.update(names)
            case ast.Import() | ast.ImportFrom():
                self.imports.append(node)

    @staticmethod
    def _parts(node: ast.AST) -> Iterator[tuple[str, Any]]:
        """Fields of a node, without docstrings, the texts of errors, and what is for type checkers."""
        parts: dict[str, Any] = {}
        match node:
            case ast.FunctionDef(body=[first, *rest]) | ast.AsyncFunctionDef(body=[first, *rest]) if _is_text(first):
                parts["body"] = rest
            case ast.ClassDef(body=[first, *rest]) if _is_text(first):
                parts["body"] = rest
            case ast.Raise(exc=ast.Call() as error):
                yield "exc", error.func
                yield "args", [each for each in error.args if not _is_message(each)]
                yield "keywords", error.keywords
                parts["exc"] = None
            case ast.If(test=test) if is_never_true(test):
                parts["body"] = None
            case ast.Assert():
                parts["msg"] = None
        for name in _FIELDS[type(node)]:
            yield name, parts[name] if name in parts else getattr(node, name, None)


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What a function takes by keyword.

    Attributes:
        names: of its parameters.
        required: those of them without a default.
        open: whether it takes any other keyword, or something by position alone.
    """

    names: tuple[str, ...]
    required: frozenset[str]
    open: bool


def signature_of(node: ast.FunctionDef | ast.AsyncFunctionDef, *, bound: bool) -> Signature:
    """The signature of a function, or of a method without its first parameter."""
    given = node.args
    positional = given.args[bound and not given.posonlyargs :]
    without = len(positional) - min(len(given.defaults), len(positional))
    required = [each.arg for each in positional[:without]]
    required += [each.arg for each, default in zip(given.kwonlyargs, given.kw_defaults, strict=True) if default is None]
    return Signature(
        names=tuple(each.arg for each in (*positional, *given.kwonlyargs)),
        required=frozenset(required),
        open=given.kwarg is not None or len(given.posonlyargs) > bound,
    )


def _is_only_said(node: ast.AST, field: str, *, of: ast.AST) -> bool:
    """Whether a field of a node is not used: an annotation of a function or of a variable in it, the error raised."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return field == "returns"
        case ast.arg():
            return field == "annotation"
        case ast.AnnAssign():
            return field == "annotation" and node is not of
        case ast.Raise():
            return field == "exc"
    return False


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


def chain_of(node: ast.AST) -> tuple[str, ...]:
    """A dotted name; empty for anything else."""
    match node:
        case ast.Name(id=name, ctx=ast.Load()):
            return (name,)
        case ast.Attribute(value=value, attr=attribute) if chain := chain_of(value):
            return (*chain, attribute)
    return ()


def walk(root: ast.AST) -> Iterator[ast.AST]:
    """A node and all in it, in any order: `ast.walk` without its queue."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        yield node
        for name in _FIELDS[type(node)]:
            value = getattr(node, name, None)
            if isinstance(value, list):
                waiting.extend(each for each in value if isinstance(each, ast.AST))
            elif isinstance(value, ast.AST):
                waiting.append(value)


def is_never_true(test: ast.expr) -> bool:
    """Whether a condition holds for type checkers only, or only in a file that is started as a program."""
    match test:
        case ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"):
            return True
        case ast.Compare(left=ast.Name(id="__name__"), ops=[ast.Eq()], comparators=[ast.Constant(value="__main__")]):
            return True
    return False
