"""SPD: a step that leads away from the pre-trained weights is drawn back where the loss disagrees.

Selective projection decay (Tian et al. 2024, algorithm 1) decides for each parameter tensor theta
with gradient g and pre-trained value a, after the optimizer's step to theta'. Where
sum(g * (theta - a)) > 0, so that descent along the gradient would lead back to a,

    theta'' = theta' - lam r (theta' - a),
    r = clamp((|theta' - a| - |theta - a|) / |theta' - a|, 0, 1)

so lam = 1 brings a tensor that moved away back to its former distance. The head is drawn to its
pre-trained weights too, since it knows the classes before fine-tuning. The optimizer's weight decay
is independent of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from engine.methods.base import Trained
from engine.methods.context import Context
from engine.recipe.options import SPD as Recipe

LISTS: Any = torch  # whose operations on lists of tensors have no types


class Method(Trained):
    recipe: Recipe

    def prepare(self, net: nn.Module, context: Context) -> None:
        super().prepare(net, context)
        self.thetas = [p for p in net.parameters() if p.requires_grad]
        self.anchors = [theta.detach().clone() for theta in self.thetas]

    @torch.no_grad()
    def before_step(self) -> None:
        offsets = LISTS._foreach_sub(self.thetas, self.anchors)
        self.distances_T = _norms(offsets)
        grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in self.thetas]
        self.descents_T = torch.stack([p.sum() for p in LISTS._foreach_mul(offsets, grads)])

    @torch.no_grad()
    def after_step(self) -> None:
        offsets = LISTS._foreach_sub(self.thetas, self.anchors)
        distances_T = _norms(offsets)
        excess_T = (distances_T - self.distances_T) / distances_T
        # A tensor at its anchor has no distance, and nothing to be drawn back.
        shares_T = torch.where(self.descents_T > 0, excess_T.nan_to_num().clamp(0, 1), 0.0)
        shares = list((self.recipe.lam * shares_T).float().unbind())
        LISTS._foreach_sub_(self.thetas, LISTS._foreach_mul(offsets, shares))


def _norms(tensors: list[torch.Tensor]) -> torch.Tensor:
    """float64, since two of them are subtracted that a step hardly changes."""
    return torch.stack(LISTS._foreach_norm(tensors, 2, torch.float64))
