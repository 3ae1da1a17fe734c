"""Options of LiNeS."""

from __future__ import annotations

from dataclasses import dataclass

from engine.recipe.schema import MethodRecipe, Unit


@dataclass(frozen=True)
class Recipe(MethodRecipe):
    needs = ("fine_tune",)
    trains = False
    alpha: Unit = 0.5  # scale of the first block
    beta: Unit = 0.5  # scale of the last block minus alpha
