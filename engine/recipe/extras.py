"""Extras: features beside the table, such as CKA, that nothing else of the engine imports.

An extra is the module NAME of `engine.extras`, or a user's file, with any of the functions of
`engine.extras.base`. A recipe names an extra and the extra's options below `extras`; an extra
without options is always in use.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from engine.did_you_mean import nearest
from engine.errors import RecipeError
from engine.recipe import finder, typed
from engine.recipe.schema import Recipe
from engine.recipe.typed import Options

PACKAGE = "engine.extras"
FILE = "module"  # key of an extra's section that names a user's file


def names() -> Mapping[str, str]:
    """The full name of each extra of the engine, by its name in recipes."""
    return finder.names_in(PACKAGE)


def complete(given: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The section `extras` of a recipe with the defaults of all options; a user's as given.

    Raises RecipeError, naming the key, for an unknown extra, an unknown option, and a value that
    an option cannot have.
    """
    complete = {}
    for name, section in given.items():
        options = None if FILE in section else _options(name, section)
        complete[name] = {**section} if options is None else dataclasses.asdict(options)
    return complete


def users_files(recipe: Recipe) -> set[str]:
    """The users' files among the extras of a recipe."""
    return {str(section[FILE]) for section in recipe.extras.values() if FILE in section}


def modules(recipe: Recipe | None = None) -> dict[str, ModuleType]:
    """The engine's extras by name, and the users' extras of a recipe if users' files may run."""
    engines = {name: importlib.import_module(module) for name, module in names().items()}
    return engines | (_in_use(recipe) if recipe else {})


def _in_use(recipe: Recipe) -> dict[str, ModuleType]:
    """The extras that a recipe names; a user's only if users' files may run."""
    return {
        name: finder.run(str(section[FILE]))
        if FILE in section
        else importlib.import_module(names()[name])
        for name, section in recipe.extras.items()
        if FILE not in section or finder.users_files_allowed()
    }


def ask(recipe: Recipe, hook: str, *arguments: Any) -> Iterator[tuple[str, Any]]:
    """What each extra that a recipe names answers, by the extra's name, if the extra has the hook.

    hook: the name of a function of `engine.extras.base`, which gets the extra's options first. A
    user's file runs if users' files may.
    """
    for name, module in _in_use(recipe).items():
        if answer := getattr(module, hook, None):
            yield name, answer(_options(name, recipe.extras[name], module), *arguments)


def _options(name: str, section: Mapping[str, Any], module: ModuleType | None = None) -> Any:
    """The options of an extra, of its class `Options`."""
    key = f"extras.{name}"
    if module is None:
        if name not in names():
            raise RecipeError(
                f"{key}: unknown extra{nearest(name, names())}; an extra of yours needs "
                f"{key}.{FILE}=FILE.py"
            )
        module = importlib.import_module(names()[name])
    values: dict[str, Any] = {}
    given = {option: value for option, value in section.items() if option != FILE}
    if not hasattr(module, "Options"):
        if given:
            raise RecipeError(f"{key} has no options, and {min(given)} is given")
        return None
    typed.add(values, module.Options, Options(), given, "", f"{key}.")
    return typed.build(values, module.Options, Options(), key)
