"""Options of VRF."""

from __future__ import annotations

from dataclasses import dataclass

from engine.recipe.schema import MethodRecipe, Positive, searched


@dataclass(frozen=True)
class Recipe(MethodRecipe):
    needs = ("fine_tune",)
    trains = False
    has_weights = False
    middle: float = 1.5  # squared distance at which both models have equal weight
    width: Positive = searched(0.6, 3)  # of the sigmoid, in units of squared distance

    @property
    def merged_models(self) -> int:
        return 0
