"""EWC: parameters that matter upstream are pulled back (Kirkpatrick et al. 2017, eq. 3).

`canonical`: loss + lambda/2 * sum F_i (theta_i - theta_pre_i)^2 with the diagonal Fisher F of the
pre-trained model on the upstream set. `paper`: loss + lambda * sum (theta_i - theta_pre_i)^2, the
identity in place of F and no 1/2. The optimizer folds the pull into its step.
"""

from __future__ import annotations

from torch import nn

from engine.methods.base import Penalty, Trained
from engine.methods.context import Context
from engine.recipe.options import EWC as Recipe


class Method(Trained):
    recipe: Recipe

    def prepare(self, net: nn.Module, context: Context) -> None:
        super().prepare(net, context)
        recipe = self.recipe
        anchor = {name: p.detach().clone() for name, p in self.named_parameters()}
        if recipe.variant == "paper":
            self.penalty = Penalty(2 * recipe.lam, anchor, None)
        else:
            fisher = context.fisher(recipe.fisher_images, recipe.fisher_labels)
            if recipe.fisher_scale == "mean":
                count = sum(f.numel() for f in fisher.values())
                mean = sum(f.double().sum().item() for f in fisher.values()) / count
                fisher = {name: f / mean for name, f in fisher.items()}
            prefixed = {f"net.{name}": f for name, f in fisher.items()}
            self.penalty = Penalty(recipe.lam, anchor, prefixed)
