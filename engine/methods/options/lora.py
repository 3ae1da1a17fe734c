"""Options of LoRA."""

from __future__ import annotations

from dataclasses import dataclass

from engine.recipe.schema import MethodRecipe, Number, searched


@dataclass(frozen=True)
class Recipe(MethodRecipe):
    step_passes = 2.0  # the backward pass skips gradients of the backbone's weights
    rank: Number = searched(8, 4)  # of the low-rank factors
    scale: float = searched(1 / 8, 4)  # factor on B A; the LoRA paper's alpha / rank
    train_head: bool = True  # original: train the head too; released freezes it
