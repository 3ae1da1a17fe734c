"""SPD: a step that leads away from the pre-trained weights is drawn back where the loss disagrees.

Selective projection decay (Tian et al. 2024, algorithm 1) looks at each parameter tensor after each
step. If descent along the gradient would lead it back to its pre-trained value, yet the step led it
further away, the excess distance is taken back, times lambda (`objectives.Projection`). The head is
drawn to its pre-trained weights too, since it knows the classes before fine-tuning. The optimizer's
weight decay is independent of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from engine.methods.base import Trained
from engine.methods.context import Context
from engine.methods.objectives import Projection
from engine.recipe import schema
from engine.recipe.checks import in_range


@dataclass(frozen=True)
class Recipe(schema.MethodRecipe):
    lam: float = 1.0  # 1: exactly back to the distance before the step

    def check(self, cell: schema.Recipe) -> None:
        in_range("method.lam", self.lam, 0, math.inf)


class Method(Trained):
    recipe: Recipe

    def prepare(self, net: nn.Module, context: Context) -> None:
        super().prepare(net, context)
        anchor = {name: p.detach().clone() for name, p in self.named_parameters()}
        self.projection = Projection(self.recipe.lam, anchor)
