"""Options of FTP."""

from __future__ import annotations

from dataclasses import dataclass

from engine.recipe.schema import MethodRecipe, Unit


@dataclass(frozen=True)
class Recipe(MethodRecipe):
    annealing: Unit = 1.0  # factor on gradients that shrink a radius; 0: radii never shrink
