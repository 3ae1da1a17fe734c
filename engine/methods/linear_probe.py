"""Linear probing: the head alone learns.

`canonical` never touches the backbone, so the head is fitted to its optimum on features that were
computed once (`engine.methods.heads`). `l2` pulls it towards the base model's head, so that
outputs which the set lacks still compete with the set's; or towards zero, for the first head of a
backbone.
`paper` follows the released benchmark: patch embedding and blocks are frozen, while class token,
position embedding and final norms train with the head (on a ResNet: the head alone).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from engine import models
from engine.methods import heads
from engine.methods.base import FrozenBackbone
from engine.methods.context import Context
from engine.recipe import schema
from engine.recipe.options import LinearProbe as Recipe
from engine.store.cells import Export

PAPER_TRAINS = ("cls_token", "pos_embed", "norm_pre", "norm", "fc_norm")


class Method(FrozenBackbone):
    recipe: Recipe

    @property
    def passes(self) -> float:
        return 0.0 if self.recipe.variant == "canonical" else super().passes

    def prepare(self, net: nn.Module, context: Context) -> None:
        super().prepare(net, context)
        head = models.head(net).requires_grad_(True)
        if self.recipe.variant == "canonical":
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
                if name.split(".")[0] in PAPER_TRAINS:
                    parameter.requires_grad_(True)

    def fit_head(self, label: str) -> dict[str, float]:
        return heads.fit(models.head(self.net), self.problem, label)

    def export(self) -> Export:
        return Export(self.net.state_dict(), shares_backbone=self.fits_head)


def first_head(cell: schema.Recipe) -> schema.Recipe:
    """The recipe of a backbone's first head, on the set that fits it, by that of any cell.

    It sees the whole training split, and so do all cells that start from it, whatever part of a
    set (`dataset.train_images`, `shots`, `portion`) they train on.
    """
    method = Recipe("linear_probe", "LP", "linear_probe", l2=cell.model.head.l2, anchor="zero")
    return replace(
        cell,
        downstream=cell.head_set,
        dataset=replace(cell.dataset, train_images=0, shots=0, portion=1.0),
        method=method,
        optimizer=schema.OptimizerRecipe(),
        train=schema.TrainRecipe(),
        seed=0,
    )
