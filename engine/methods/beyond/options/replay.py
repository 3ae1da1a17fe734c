"""Options of replay."""

from __future__ import annotations

from dataclasses import dataclass

from engine.recipe.schema import MethodRecipe, NotNegative, Number, searched


@dataclass(frozen=True)
class Recipe(MethodRecipe):
    images: Number = 1  # upstream images for each downstream image
    weight: NotNegative = searched(1.0, 10)  # of their mean loss

    @property
    def passes(self) -> float:
        return super().passes * (1 + self.images)
