"""Find a method's module: one of `engine.methods` or `engine.methods.beyond`, or a user's file.

It is imported by name, so recipes depend on no method. The module defines `Recipe` (its options)
and `Method` (built as `Method(recipe)`), as in `engine.methods.base`. A user's file runs only when
its method does; until then its options are the recipe's, unchecked.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import keyword
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from engine.did_you_mean import nearest
from engine.errors import USERS_METHOD, RecipeError
from engine.recipe import typed
from engine.recipe.schema import MethodRecipe, Recipe
from engine.recipe.typed import Layer, Options
from loaders.files.durable import file_hash

METHODS = Path(__file__).resolve().parents[1] / "methods"


def is_users(module: str) -> bool:
    """Whether a method's module is a user's file."""
    return module.endswith(".py")


def options(layers: Sequence[Layer]) -> type[MethodRecipe]:
    """The options class of the layers' method. Imports neither torch nor a user's file, whose
    options are taken from the layers.

    Raises RecipeError, naming the layer, if the module is missing or unknown.
    """
    sections = [(source, layer["method"]) for source, layer in layers if "method" in layer]
    sections = [(source, each) for source, each in sections if isinstance(each, Mapping)]
    named = [(source, str(each["module"])) for source, each in sections if each.get("module")]
    if not named:
        source = sections[0][0] if sections else layers[0][0]
        raise RecipeError(
            f"{source}: method.module has no value: set it to a module of engine.methods, or to a "
            ".py file"
        )
    source, module = named[-1]
    if not is_users(module):
        if module not in names():
            hint = nearest(module, names())
            raise RecipeError(f"{source}: unknown method module {module!r}{hint}")
        return importlib.import_module(names()[module]).Recipe
    if not Path(module).is_file():
        raise RecipeError(
            f"{source}: method.module={module!r} is not a Python file. A relative path starts at "
            "the folder of its YAML file or, on the command line, at the working directory"
        )
    return as_given(MethodRecipe, {str(name) for _, section in sections for name in section})


def planned_options(method: Mapping[str, Any]) -> type[MethodRecipe]:
    """The options class of a method in a plan, readable even if a user's file is gone.

    Raises KeyError for an unknown module.
    """
    module = method["module"]
    if is_users(module):
        return as_given(MethodRecipe, method)
    return importlib.import_module(names()[module]).Recipe


def complete(method: MethodRecipe, *, run_users: bool = False) -> MethodRecipe:
    """A method's options as its module defines them. Runs a user's file.

    Raises RecipeError for options that the module does not allow, and ValueError as `find`.
    """
    if not is_users(method.module):
        return method
    kind, values = find(method.module, run_users=run_users).Recipe, {}
    typed.add(values, kind, Options(), vars(method), method.module, "method.")
    return typed.build(values, kind, Options(), method.module)


def checked(recipe: Recipe, *, run_users: bool = False) -> MethodRecipe:
    """The complete options of a cell's method. Runs a user's file.

    Raises RecipeError as `complete`, and if the options' `check` rejects the cell.
    """
    options = complete(recipe.method, run_users=run_users)
    options.check(dataclasses.replace(recipe, method=options))
    return options


def method_of(recipe: Recipe, *, run_users: bool = False) -> Any:
    """The method of a cell, built with its options."""
    options = checked(recipe, run_users=run_users)
    return find(options.module, run_users=run_users).Method(options)


def find(module: str, *, run_users: bool = False) -> ModuleType:
    """Import a method's module. A user's file runs once per content.

    run_users: permission to run a user's file. Only commands that train, and `rib merge` for the
    method that the user names, have it: a plan may come from somebody else. Raises PermissionError
    for a user's file without permission, ValueError if `Method` or a `Recipe` that extends
    `MethodRecipe` is missing, and RecipeError if the file is not valid Python.
    """
    if is_users(module):
        if not run_users:
            raise PermissionError(f"{module} is a program: only commands that train run it")
        method = run(Path(module))
    else:
        method = importlib.import_module(names()[module])
    for name in ("Recipe", "Method"):
        if not hasattr(method, name):
            raise ValueError(f"{module} does not define {name}; see docs/extend.md")
    if not issubclass(method.Recipe, MethodRecipe):
        raise ValueError(f"{module}: Recipe does not extend engine.recipe.schema.MethodRecipe")
    return method


@functools.cache
def names() -> Mapping[str, str]:
    """The full name of each module of the engine that defines a method, by its name in recipes."""
    files = [file for file in METHODS.rglob("*.py") if "\nclass Recipe(" in file.read_text("utf-8")]
    folders = {file.stem: file.relative_to(METHODS.parents[1]).with_suffix("") for file in files}
    return {name: ".".join(folders[name].parts) for name in sorted(folders)}


def with_option(option: str) -> list[str]:
    """The modules of `names` that have an option of their own of this name."""
    kinds = {name: importlib.import_module(module).Recipe for name, module in names().items()}
    return [name for name, kind in kinds.items() if option in vars(kind).get("__annotations__", ())]


def as_given(base: type, names: Iterable[str]) -> type[Any]:
    """A class of options that extends `base` by these names, for a file that did not run."""
    return _extended(base, tuple(sorted(names)))


@functools.cache  # equal options share a class, so recipes compare equal
def _extended(base: type, names: tuple[str, ...]) -> type[Any]:
    shared = {field.name for field in dataclasses.fields(base)}
    possible = [name for name in names if name.isidentifier() and not keyword.iskeyword(name)]
    fields = [(name, Any, None) for name in possible if name not in shared]
    return dataclasses.make_dataclass("Recipe", fields, bases=(base,), frozen=True)


def run(path: Path) -> ModuleType:
    """Run a user's file as a module, once per content. Raises RecipeError for invalid Python."""
    return _run(path, file_hash(path))


@functools.cache
def _run(path: Path, content: str) -> ModuleType:
    """content: the file's hash, so that a changed file runs again."""
    spec = importlib.util.spec_from_file_location(USERS_METHOD + path.stem, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up the module that defines them
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        if error.filename != str(path):
            raise
        raise RecipeError(f"{path}, line {error.lineno}: {error.msg}") from error
    return module
