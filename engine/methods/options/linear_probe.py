"""Options of linear probing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.recipe.schema import MethodRecipe, Positive, searched


@dataclass(frozen=True)
class Recipe(MethodRecipe):
    step_passes = 2.0  # as LoRA's
    l2: Positive = searched(1e-3, 10)  # original: weight of the penalty (`engine.methods.heads`)
    anchor: Literal["base", "zero"] = "base"  # original: l2 pulls to the base model's head, or 0

    @property
    def takes_steps(self) -> bool:
        return self.variant != "original"
