"""Find a method: one of `engine.methods` or `engine.methods.beyond`, or a user's file.

It is found by name, so recipes depend on no method. `Recipe` are its options, and `Method` (built
as `Method(recipe)`) what trains or merges, as in `engine.methods.base`. A user's file runs only
when its method does; until then its options are the recipe's, unchecked.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from engine.recipe.finder import OPTIONS, Modules, is_users
from engine.recipe.schema import MethodRecipe, Recipe
from engine.recipe.source_code import digest_of_method, file_of
from loaders.files.durable import file_hash

METHODS = Modules(
    section="method",
    key="module",
    packages=(f"engine.methods.{OPTIONS}", f"engine.methods.beyond.{OPTIONS}"),
    base=MethodRecipe,
    made="Method",
    noun="method module",
)


def source_digest(module: str) -> str:
    """The digest of a method's source (`source_code.digest_of_method`), part of its cells' names.

    Of an engine's method it is constant during a process, like the module that was imported.
    """
    return digest_of_method(Path(module)) if is_users(module) else _digest_of_engines(module)


@functools.cache
def _digest_of_engines(module: str) -> str:
    return digest_of_method(file_of(METHODS.module(module)))


def content_digest(name: str) -> str:
    """The digest of a method or of another file that a user names, as a plan stores it.

    Raises OSError if the file cannot be read.
    """
    is_method = is_users(name) or name in METHODS.names()
    return source_digest(name) if is_method else file_hash(Path(name))


def checked(recipe: Recipe) -> MethodRecipe:
    """The complete options of a cell's method. Runs a user's file.

    Raises RecipeError as `Modules.complete`, and if the options' `check` rejects the cell.
    """
    options = METHODS.complete(recipe.method)
    options.check(dataclasses.replace(recipe, method=options))
    return options


def method_of(recipe: Recipe) -> Any:
    """The method of a cell, built with its options. Runs a user's file."""
    options = checked(recipe)
    return METHODS.find(options.module).Method(options)
