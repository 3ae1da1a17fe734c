"""L2-SP: weights are pulled to their pre-trained values, all alike (Li et al. 2018, equation 3).

loss + alpha/2 * sum over shared parameters (theta_i - theta_pre_i)^2, and with `head=new` also
beta/2 * sum over the head theta_i^2. The benchmark's heads know the classes before fine-tuning, so
by default (`head=shared`) the head is pulled to its pre-trained values like the rest.

EWC `variant=paper` is the same pull without the 1/2 and at the released code's strength: its lambda
of 1 is an alpha of 2, on the head too. EWC `canonical` pulls each parameter by its Fisher. The
optimizer folds the pull into its step.
"""

from __future__ import annotations

import torch
from torch import nn

from engine import models
from engine.methods.base import Penalty, Trained
from engine.methods.context import Context
from engine.recipe.options import L2SP as Recipe


class Method(Trained):
    recipe: Recipe

    def prepare(self, net: nn.Module, context: Context) -> None:
        super().prepare(net, context)
        anchor = {name: p.detach().clone() for name, p in self.named_parameters()}
        if self.recipe.head == "shared":
            self.penalty = Penalty(self.recipe.alpha, anchor)
            return
        head = {f"net.{name}" for name in models.head_names(context.recipe.model)}
        strength = dict.fromkeys(anchor, self.recipe.alpha) | dict.fromkeys(head, self.recipe.beta)
        anchor |= {name: torch.zeros_like(anchor[name]) for name in head}
        scale = {n: torch.tensor(strength[n]).expand(p.shape) for n, p in anchor.items()}
        self.penalty = Penalty(1.0, anchor, scale)
