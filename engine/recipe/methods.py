"""Find a method: one of `engine.methods` or `engine.methods.beyond`, or a user's file.

It is found by name, so recipes depend on no method. `Recipe` are its options, and `Method` (built
as `Method(recipe)`) what trains or merges, as in `engine.methods.base`. A user's file runs only
when its method does; until then its options are the recipe's, unchecked.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from engine.recipe.finder import OPTIONS, Modules
from engine.recipe.schema import MethodRecipe, Recipe

METHODS = Modules(
    section="method",
    key="module",
    packages=(f"engine.methods.{OPTIONS}", f"engine.methods.beyond.{OPTIONS}"),
    base=MethodRecipe,
    made="Method",
    noun="method module",
)


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
