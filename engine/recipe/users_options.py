"""The options of a user's method, read from its source. Nothing of that source is run.

A recipe may come from a stranger, and to show it must not run the stranger's program. So the class
`Recipe` in a method's file is read as text: its base, and its lines `NAME: TYPE = VALUE`. The file
runs only where the method trains (`modules.method_of`).
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from engine.recipe.schema import MethodRecipe
from loaders.files import read_small

READABLE = ("engine.methods", "engine.recipe")  # packages that a base may come from
TYPES: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool}
GENERIC: dict[str, Any] = {"list": list, "tuple": tuple, "dict": dict}


def options_class(path: Path) -> type[MethodRecipe]:
    """The options of the method in a file, as a class like its `Recipe`.

    It has nothing of the file's code: its `check` is that of its base, a class of the engine.
    Raises ValueError naming the file, and the line of what cannot be read.
    """
    source = read_small(path)
    try:
        names = _defined(ast.parse(source))
        for name in ("Recipe", "Method"):
            if name not in names:
                raise ValueError(f"it does not define {name}; see CONTRIBUTING.md")
        return _class(names, ast.Name("Recipe", lineno=1))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path}: {error}") from error


def _defined(tree: ast.Module) -> dict[str, ast.stmt | ast.alias]:
    """What gives each name of a module its meaning; the last that does counts."""
    names: dict[str, ast.stmt | ast.alias] = {}
    for node in tree.body:
        match node:
            case ast.ImportFrom(module=str(module), level=0):
                for alias in node.names:
                    names[alias.asname or alias.name] = ast.alias(f"{module}:{alias.name}")
            case ast.ClassDef():
                names[node.name] = node
            case ast.Assign():
                names |= {to.id: node for to in node.targets if isinstance(to, ast.Name)}
    return names


def _class(names: Mapping[str, ast.stmt | ast.alias], node: ast.expr) -> type[MethodRecipe]:
    """The class of options that a name, or an attribute of a module, stands for."""
    value = _value(names, node)
    if not (isinstance(value, type) and issubclass(value, MethodRecipe)):
        raise ValueError(
            f"line {node.lineno}: {ast.unparse(node)} is not read without running the file; "
            "extend engine.recipe.schema.MethodRecipe, or the Recipe of a method of the engine"
        )
    return value


def _value(names: Mapping[str, ast.stmt | ast.alias], node: ast.expr) -> Any:
    """What an expression stands for, if it is of the engine or a class of options; else None."""
    match node:
        case ast.Attribute():
            return getattr(_value(names, node.value), node.attr, None)
        case ast.Name():
            match names.get(node.id):
                case ast.alias(name=imported):
                    return _imported(*imported.split(":"))
                case ast.Assign(value=value):
                    return _value(names, value)
                case ast.ClassDef() as body:
                    bases = tuple(_class(names, base) for base in body.bases)
                    return dataclasses.make_dataclass(
                        body.name, _fields(body), bases=bases or (object,), frozen=True
                    )
    return None


def _imported(module: str, name: str) -> Any:
    """A name of a module of `READABLE`; None for any other, which is not imported."""
    if not any(f"{module}.".startswith(f"{package}.") for package in READABLE):
        return None
    if module == READABLE[0]:
        module, name = f"{module}.{name}", ""
    try:
        whole = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{error}") from error
    return getattr(whole, name, None) if name else whole


def _fields(body: ast.ClassDef) -> list[tuple[str, Any, Any]]:
    """Name, type and default of the options in the body of a class."""
    fields = []
    for line in body.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            try:
                fields.append((line.target.id, _type(line.annotation), _default(line.value)))
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"line {line.lineno}: {ast.unparse(line)!r} is not NAME: TYPE = VALUE, of the "
                    f"types {', '.join((*TYPES, *GENERIC))} and a plain value: it is read, not run"
                ) from error
    decorators = [ast.unparse(node).partition("(")[0] for node in body.decorator_list]
    if (fields or decorators) and decorators not in (["dataclass"], ["dataclasses.dataclass"]):
        raise ValueError(
            f"line {body.lineno}: a class of options needs @dataclass(frozen=True) above it, and "
            "no more than that"
        )
    return fields


def _type(node: ast.expr) -> Any:
    """The type that an annotation names; ValueError for all but `TYPES`, `GENERIC` and unions."""
    match node:
        case ast.Name(id=name) if name in TYPES:
            return TYPES[name]
        case ast.Constant(value=None):
            return NoneType
        case ast.Constant(value=value) if value is ...:
            return value
        case ast.BinOp(op=ast.BitOr()):
            return _type(node.left) | _type(node.right)
        case ast.Subscript(value=ast.Name(id=name)) if name in GENERIC:
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return GENERIC[name][tuple(map(_type, inner))]
    raise ValueError(ast.unparse(node))


def _default(node: ast.expr | None) -> Any:
    """The default of an option as a dataclass field; ValueError for what is no plain value."""
    match node:
        case None:
            raise ValueError("no default")
        case ast.Call(keywords=[ast.keyword(arg="default_factory", value=ast.Lambda(body=body))]):
            node = body
        case ast.Call(keywords=[ast.keyword(arg="default_factory", value=ast.Name(id=name))]):
            if name in ("list", "dict"):
                return dataclasses.field(default_factory=GENERIC[name])
            raise ValueError(name)
    value = ast.literal_eval(node)
    if isinstance(value, list | dict):
        return dataclasses.field(default_factory=lambda: type(value)(value))
    return dataclasses.field(default=value)
