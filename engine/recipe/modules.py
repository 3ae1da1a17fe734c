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


def is_users(module: str) -> bool:
    """Whether a method's module is a user's file."""
    return module.endswith(".py")


def options(layers: Sequence[Layer]) -> type[MethodRecipe]:
    """The options class of the layers' method. Imports neither torch nor a user's file, whose
    options are taken from the layers.

    Raises RecipeError, naming the layer, if the module is missing or unknown.
    """
    source, module, given = named(layers, "method", "module")
    if not module:
        raise RecipeError(
            f"{source}: method.module has no value: set it to a module of engine.methods, or to a "
            ".py file"
        )
    if is_users(module):
        check_file(f"{source}: method.module", module)
    elif module not in names():
        raise RecipeError(f"{source}: unknown method module {module!r}{nearest(module, names())}")
    return planned_options({**dict.fromkeys(given), "module": module})


def planned_options(method: Mapping[str, Any]) -> type[MethodRecipe]:
    """The options class of a method in a plan, readable even if a user's file is gone.

    Raises KeyError for an unknown module.
    """
    module = method["module"]
    if is_users(module):
        return as_given(MethodRecipe, method)
    return importlib.import_module(names()[module]).Recipe


def named(layers: Sequence[Layer], section: str, key: str) -> tuple[str, str, list[str]]:
    """The last layer whose section names a module by `key`, or the first one that has the section;
    the module, or empty; and the keys of the section in all layers."""
    sections = [
        (source, layer[section])
        for source, layer in layers
        if isinstance(layer.get(section), Mapping)
    ]
    of_module = [(source, str(each[key])) for source, each in sections if each.get(key)]
    source, module = of_module[-1] if of_module else ((sections or layers)[0][0], "")
    return source, module, [str(name) for _, each in sections for name in each]


def check_file(key: str, path: str) -> None:
    """Raise RecipeError if a key names no file."""
    if not Path(path).is_file():
        raise RecipeError(
            f"{key}={path!r} is not a Python file. A relative path starts at the folder of its "
            "YAML file or, on the command line, at the working directory"
        )


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
    for a user's file without permission, and errors as `run`.
    """
    if is_users(module):
        if not run_users:
            raise PermissionError(f"{module} is a program: only commands that train run it")
        return run(module, MethodRecipe, "Method")
    return importlib.import_module(names()[module])


def names() -> Mapping[str, str]:
    """The full name of each module of the engine that defines a method, by its name in recipes."""
    return names_in("engine/methods")


@functools.cache
def names_in(folder: str) -> Mapping[str, str]:
    """The full name of each module below a folder that defines options, by its name in recipes."""
    root = Path(__file__).parents[2]
    files = (root / folder).rglob("*.py")
    named = [file for file in files if "\nclass Recipe(" in file.read_text("utf-8")]
    folders = {file.stem: file.relative_to(root).with_suffix("") for file in named}
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


def run(file: str, options: type, made: str) -> ModuleType:
    """Run a user's file as a module, once per content.

    options: what its `Recipe` extends. made: the class that it defines besides. Raises ValueError
    if one is missing, and RecipeError for invalid Python.
    """
    module = _run(Path(file), file_hash(Path(file)))
    for name in ("Recipe", made):
        if not hasattr(module, name):
            raise ValueError(f"{file} does not define {name}; see docs/extend.md")
    if not issubclass(module.Recipe, options):
        extended = f"{options.__module__}.{options.__name__}"
        raise ValueError(f"{file}: Recipe does not extend {extended}")
    return module


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
