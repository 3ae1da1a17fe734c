"""Options of EWC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.recipe.schema import Count, MethodRecipe, NotNegative, searched


@dataclass(frozen=True)
class Recipe(MethodRecipe):
    lam: NotNegative = searched(1.0, 10)  # lambda, the penalty's strength
    fisher_images: Count = 0  # images of the upstream training split; 0, or more than it has: all
    # model: labels sampled from the model's predictions; data: true labels (empirical Fisher);
    # reversed: true labels and negated logits (EWC-DR)
    fisher_labels: Literal["model", "data", "reversed"] = "model"
    # mean: divide by its mean, so that lambda has the same scale for every model
    fisher_scale: Literal["none", "mean"] = "none"
