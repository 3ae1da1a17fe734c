"""Options of FLOW."""

from __future__ import annotations

from engine.recipe.schema import MethodRecipe


class Recipe(MethodRecipe):
    """FLOW has no options."""
