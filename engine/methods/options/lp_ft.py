"""Options of LP-FT."""

from __future__ import annotations

from dataclasses import dataclass

from engine.recipe.schema import MethodRecipe


@dataclass(frozen=True)
class Recipe(MethodRecipe):
    needs = ("linear_probe",)
