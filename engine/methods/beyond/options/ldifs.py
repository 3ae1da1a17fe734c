"""Options of LDIFS."""

from __future__ import annotations

from dataclasses import dataclass

from engine.recipe.schema import MethodRecipe, NotNegative, searched


@dataclass(frozen=True)
class Recipe(MethodRecipe):
    step_passes = 4.0  # the pretrained model's forward pass too
    weight: NotNegative = searched(10.0, 10)  # of the features' distance; the release's
