"""Options of LwF."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from engine.recipe.schema import MethodRecipe, NotNegative, Positive, searched


@dataclass(frozen=True)
class Recipe(MethodRecipe):
    stored_passes: ClassVar[float] = 1.0

    weight: NotNegative = searched(1.0, 10)  # of the distillation loss
    temperature: Positive = searched(2.0, 2)  # T, which softens both models' probabilities
