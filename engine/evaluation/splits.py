"""Which images of a set are evaluated."""

from __future__ import annotations

from engine.recipe.schema import Recipe


def split_of(recipe: Recipe, name: str) -> str:
    """The split that a set is evaluated on: the hold-out of a set that a cell trained on, where
    there is one; `evaluate.split` of any other."""
    trained_on = name in (recipe.downstream, recipe.dataset.upstream)
    return "holdout" if recipe.dataset.holdout and trained_on else recipe.evaluate.split
