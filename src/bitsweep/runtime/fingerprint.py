"""Content hashes: of configuration, of the code that a stage runs, and of both together with versions.

Two things have the same key exactly when the same code would make them from the same inputs and settings.
"""

import ast
import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import bitsweep

#: Modules that name things and compute nothing that reaches a result other than through a configured value.
_VOCABULARY = frozenset(f"bitsweep.{name}" for name in ("axes", "artifacts", "errors", "environment", "fingerprint"))


def digest(*parts: Any) -> str:
    """SHA-256, as 64 hex digits, of JSON-serialisable parts."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def settings(configured: Any) -> dict[str, Any]:
    """Class and knobs of a configured object, as JSON types."""
    kind = type(configured)
    return {"class": f"{kind.__module__}.{kind.__qualname__}", **dataclasses.asdict(configured)}


@functools.cache
def code(*modules: str) -> str:
    """Hash of the given modules of this package and of all its modules that they import, comments and layout apart."""
    seen: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in seen or name in _VOCABULARY:
            continue
        tree = _parsed(name)
        seen[name] = hashlib.sha256(ast.dump(tree).encode()).hexdigest()
        waiting += _imported(tree)
    return digest(seen)


@functools.cache
def _parsed(module: str) -> ast.Module:
    file = _file(module)
    assert file is not None
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            del body[0]
    return tree


@functools.cache
def _file(module: str) -> Path | None:
    """File of a module of this package, found without importing it; None if there is no such module."""
    parts = module.split(".")[1:]
    for root in bitsweep.__path__:
        for file in (Path(root, *parts).with_suffix(".py"), Path(root, *parts, "__init__.py")):
            if parts and file.is_file():
                return file
    return None


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imported(tree: ast.Module) -> list[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.startswith("bitsweep.") and _file(name)]
