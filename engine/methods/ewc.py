"""EWC: pulls the parameters that matter upstream to their pretrained values.

Kirkpatrick et al. 2017, equation 3. `original` minimises
loss + lambda/2 * sum F_i (theta_i - theta_pre_i)^2, where F is the diagonal Fisher of the
pretrained model on the upstream dataset. `released` minimises
loss + lambda * sum (theta_i - theta_pre_i)^2, without F and the 1/2, as the released benchmark
does. The optimizer applies the penalty in its step.

`fisher_labels=reversed` is EWC-DR (Liu & Chang 2026, arXiv 2603.18596). If the model is confident,
its gradients vanish, and with them the Fisher of weights that matter. EWC-DR therefore measures
F_i = E (d log softmax(-z)_y / d theta_i)^2 with the negated logits -z and the true label y.
Training uses the logits as such. As for all EWC here, F comes from each image alone, in eval mode;
the authors' release squares a batch's mean gradient in training mode and limits F to 0.0001.

Differs from the authors' code: EWC-DR's F comes from each image alone, is not limited, and lambda
is 1 with a mean F of 1 in our campaigns; the authors limit F to 0.0001 with a lambda of 10,000.
"""

from __future__ import annotations

from torch import nn

from engine.methods.base import Context, Penalty, Trained
from engine.methods.options.ewc import Recipe


class Method(Trained):
    recipe: Recipe

    def prepare(self, net: nn.Module, context: Context) -> None:
        super().prepare(net, context)
        recipe = self.recipe
        anchor = {name: p.detach().clone() for name, p in self.named_parameters()}
        if recipe.variant == "released":
            self.penalty = Penalty(2 * recipe.lam, anchor, None)
        else:
            fisher = context.fisher(recipe.fisher_images, recipe.fisher_labels)
            if recipe.fisher_scale == "mean":
                count = sum(f.numel() for f in fisher.values())
                mean = sum(f.double().sum().item() for f in fisher.values()) / count
                fisher = {name: f / mean for name, f in fisher.items()}
            prefixed = {f"net.{name}": f for name, f in fisher.items()}
            self.penalty = Penalty(recipe.lam, anchor, prefixed)
