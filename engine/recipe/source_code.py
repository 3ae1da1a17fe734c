"""Digests of Python sources that ignore comments, docstrings and formatting.

They are equal on every version of Python, since they come from the syntax tree's content.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loaders.files.durable import file_hash

ROOT = Path(__file__).parents[2]
METHODS = "engine.methods"
OF_ALL = f"{METHODS}.base"  # not the source of a single method


def digest_of_method(file: Path) -> str:
    """The digest of a method's file and of the engine's methods that it imports, directly or not,
    such as the module of its base class.

    `engine.methods.base`, which all methods share, is not included. Raises OSError if the file
    cannot be read. A file that is not valid Python is identified by its bytes.
    """
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # reported when the file runs
        return file_hash(file)
    imported, todo = dict[str, str](), [*_methods_in(tree)]
    while todo:
        if (name := todo.pop()) not in imported:
            of_module = _tree(file_of(name))
            imported[name] = _digest(of_module)
            todo += _methods_in(of_module)
    return _joined([_digest(tree), *(f"{name} {imported[name]}" for name in sorted(imported))])


@functools.cache
def digest_of_folder(name: str) -> str:
    """The digest of a module of the engine, or of a folder's modules, by their path below the
    root. Constant during a process, like the modules that it imported."""
    place = ROOT / name
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    return _joined([f"{file.relative_to(ROOT)} {_digest(_tree(file))}" for file in files])


def _methods_in(tree: ast.Module) -> Iterator[str]:
    """The modules of methods that a module imports anywhere."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            is_method = name.startswith(f"{METHODS}.") and name != OF_ALL
            if is_method and file_of(name).is_file():
                yield name


def file_of(module: str) -> Path:
    """The file of a module of the engine, by its full name."""
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


@functools.cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_bytes(), str(file))


def _digest(tree: ast.Module) -> str:
    return hashlib.sha256(repr(_content(tree)).encode()).hexdigest()


def _joined(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _content(node: Any) -> Any:
    """A syntax tree as nested lists, without positions, docstrings, and fields that are empty,
    which differ between versions of Python."""
    if isinstance(node, ast.AST):
        fields = [(k, v) for k, v in ast.iter_fields(node) if v is not None and v != []]
        return [type(node).__name__, *([key, _content(value)] for key, value in fields)]
    if isinstance(node, list):
        return [_content(child) for child in node if not _is_text(child)]
    return node


def _is_text(node: Any) -> bool:
    """Whether a statement is a docstring, or another string without effect."""
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
