"""Options of DiGraP."""

from __future__ import annotations

from dataclasses import dataclass

from engine.recipe.schema import MethodRecipe, NotNegative


@dataclass(frozen=True)
class Recipe(MethodRecipe):
    rate: NotNegative = 0.5  # learning rate of omega; 0: plain fine-tuning
