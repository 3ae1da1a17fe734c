"""Options of strong fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from engine.recipe.schema import BelowOne, MethodRecipe, NotNegative, Part, Unit


@dataclass(frozen=True)
class Recipe(MethodRecipe):
    layer_decay: Part = 1.0  # ratio of a layer's learning rate to the next layer's; 1: all equal
    ema: BelowOne = 0.0  # decay of a moving average of the weights; 0: no average
    label_smoothing: BelowOne = 0.0  # probability mass spread evenly over all classes; 0: none
    mixup: NotNegative = 0.0  # alpha of the Beta distribution of mixing coefficients; 0: no mixup
    hflip: Unit = 0.0  # probability of a horizontal flip
