"""Linear probing: trains only the head.

`original` freezes the backbone, computes features once and fits the head to its optimum
(`engine.methods.heads`). `l2` pulls the head to the base model's head, so that outputs without
training images stay comparable with the others. For a backbone's first head, `l2` pulls to zero.

`released` follows the released benchmark: it freezes the patch embedding and the blocks, and trains
the class token, position embedding and final norms with the head (on a ResNet, the head alone).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from engine import models
from engine.methods import heads
from engine.methods.base import Context, FrozenBackbone
from engine.methods.options.linear_probe import Recipe
from engine.recipe import schema
from engine.store.cells import Export

RELEASED_TRAINS = ("cls_token", "pos_embed", "norm_pre", "norm", "fc_norm")


class Method(FrozenBackbone):
    recipe: Recipe

    def prepare(self, net: nn.Module, context: Context) -> None:
        super().prepare(net, context)
        head = models.head(net).requires_grad_(True)
        if self.recipe.variant == "original":
            if self.recipe.anchor == "zero":
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)
            self.fits_head = True
            self.problem = heads.Problem(
                context.features(context.base, context.target, training=True),
                self.targets_N,
                torch.from_numpy(context.target.training(context.recipe)),
                self.recipe.l2,
                self.mask_C,
                self.members_GM,
            )
        else:
            for name, parameter in net.named_parameters():
                if name.split(".")[0] in RELEASED_TRAINS:
                    parameter.requires_grad_(True)

    def fit_head(self, label: str) -> dict[str, float]:
        return heads.fit(models.head(self.net), self.problem, label)

    def export(self) -> Export:
        return Export(self.net.state_dict(), shares_backbone=self.fits_head)


def first_head(cell: schema.Recipe) -> schema.Recipe:
    """The recipe of a backbone's first head, from the recipe of any cell that starts from it.

    The head is fitted on the whole training split of its dataset, even if the cell's recipe limits
    the training images (`dataset.train_images`, `shots`, `fraction`).
    """
    method = Recipe("linear_probe", "LP", "linear_probe", l2=cell.model.head.l2, anchor="zero")
    return replace(
        cell,
        downstream=cell.head_set,
        dataset=replace(cell.dataset, train_images=0, shots=0, fraction=1.0),
        method=method,
        optimizer=schema.OptimizerRecipe(),
        train=schema.TrainRecipe(),
        seed=0,
    )
