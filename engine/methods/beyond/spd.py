"""SPD: shrinks a step away from the pretrained weights if the gradient points back to them.

Selective projection decay (Tian et al. 2024, algorithm 1) acts on each parameter tensor theta with
gradient g and pretrained value a, after the optimizer's step to theta'. If
sum(g * (theta - a)) > 0, so that gradient descent leads back towards a, it sets

    theta'' = theta' - lam r (theta' - a),
    r = clamp((|theta' - a| - |theta - a|) / |theta' - a|, 0, 1)

With lam = 1, a tensor that moved away returns to its distance before the step. SPD also applies to
the head, since the pretrained head already covers the classes. The optimizer's weight decay is
independent of SPD.
"""

from __future__ import annotations

import torch
from torch import nn

from engine.machine.compat import LISTS
from engine.methods.base import Context, Trained
from engine.methods.beyond.options.spd import Recipe


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
        # The excess of a tensor at its anchor is 0 / 0.
        shares_T = torch.where(self.descents_T > 0, excess_T.nan_to_num().clamp(0, 1), 0.0)
        shares = list((self.recipe.lam * shares_T).float().unbind())
        LISTS._foreach_sub_(self.thetas, LISTS._foreach_mul(offsets, shares))


def _norms(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Norms [T] in float64: the norms before and after a step are close, and are subtracted."""
    return torch.stack(LISTS._foreach_norm(tensors, 2, torch.float64))
