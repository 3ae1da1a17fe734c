"""Options of SPD."""

from __future__ import annotations

from dataclasses import dataclass

from engine.recipe.schema import MethodRecipe, NotNegative, searched


@dataclass(frozen=True)
class Recipe(MethodRecipe):
    lam: NotNegative = searched(1.0, 3)  # 1: return exactly to the distance before the step
