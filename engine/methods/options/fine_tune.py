"""Options of fine-tuning."""

from __future__ import annotations

from engine.recipe.schema import MethodRecipe


class Recipe(MethodRecipe):
    """The options of every method."""
