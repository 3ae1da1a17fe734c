"""Options of MonoSoup."""

from __future__ import annotations

from dataclasses import dataclass

from engine.recipe.schema import MethodRecipe


@dataclass(frozen=True)
class Recipe(MethodRecipe):
    needs = ("fine_tune",)
    trains = False
