"""The module that a method's recipe names: a module of `engine.methods`, or a user's file.

It is imported by name, so that recipes depend on no method. It defines `Recipe` (its options) and
`Method` (built as `Method(recipe)`), which follows `engine.methods.base`. A user's file runs only
where its method is built: `options` reads it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from engine.errors import USERS_METHOD, nearest
from engine.recipe.schema import MethodRecipe, Recipe
from engine.recipe.users_options import options_class

METHODS = "engine.methods"
SHARED = ("base", "context", "heads", "objectives", "task_vectors")


def available() -> list[str]:
    """Names of the methods that come with the engine."""
    methods = importlib.import_module(METHODS)
    return sorted(m.name for m in pkgutil.iter_modules(methods.__path__) if m.name not in SHARED)


def is_users(module: str) -> bool:
    """Whether a method's module is a user's file."""
    return module.endswith(".py")


def options(module: str) -> MethodRecipe:
    """The default options of a method. A user's file is read and not run.

    Raises ValueError when there is no such method, or its options cannot be read.
    """
    if is_users(module):
        return options_class(_file(module))()
    return find(module).Recipe()


def method_of(recipe: Recipe) -> Any:
    """The method of a cell, built with its options. This runs a user's file.

    Raises ValueError as `find` does, and RecipeError where the method's `check` refuses the cell.
    """
    module = find(recipe.method.module)
    options = module.Recipe(**vars(recipe.method))
    options.check(dataclasses.replace(recipe, method=options))
    return module.Method(options)


def find(module: str) -> ModuleType:
    """The module of a method: a name of `available()`, or a path to a .py file, which is run.

    Raises ValueError when there is no such method or the file lacks `Recipe` or `Method`.
    """
    if is_users(module):
        path = _file(module)
        method = _run(path, path.stat().st_mtime_ns)
    elif module in available():
        method = importlib.import_module(f"{METHODS}.{module}")
    else:
        raise ValueError(f"there is no method module {module!r}{nearest(module, available())}")
    for name in ("Recipe", "Method"):
        if not hasattr(method, name):
            raise ValueError(f"{module} does not define {name}; see CONTRIBUTING.md")
    return method


def _file(module: str) -> Path:
    path = Path(module)
    if not path.is_file():
        raise ValueError(
            f"method.module={module!r} is not a Python file; a relative path begins at the folder "
            "of its YAML file, or on the command line at the working directory"
        )
    return path


@functools.cache
def _run(path: Path, modified_ns: int) -> ModuleType:
    """The module of a user's file, which a process runs once while the file stays as it is."""
    spec = importlib.util.spec_from_file_location(USERS_METHOD + path.stem, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up the module that defines them
    spec.loader.exec_module(module)
    return module
