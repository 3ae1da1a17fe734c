"""L2-SP: pulls all weights equally to their pretrained values (Li et al. 2018, equation 3).

The penalty is alpha/2 * sum (theta_i - theta_pre_i)^2. By default (`head=shared`) it includes the
head, since the benchmark's pretrained heads already cover the classes. With `head=new` the head has
the penalty beta/2 * sum theta_i^2 instead.

Differs from the authors' code: by default the head is pulled to its pretrained values; the authors'
heads are new, and have the second penalty.

EWC `variant=released` has the same penalty without the 1/2: its lambda of 1, the released code's
value, is an alpha of 2. EWC `original` weighs each parameter by its Fisher. The optimizer applies
the penalty in its step.
"""

from __future__ import annotations

import torch
from torch import nn

from engine import models
from engine.methods.base import Context, Penalty, Trained
from engine.methods.beyond.options.l2sp import Recipe


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
