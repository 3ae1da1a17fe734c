"""LwF: the model keeps the pre-trained model's predictions on new images (Li & Hoiem 2016).

Adds weight * KL(softmax(teacher/T) || softmax(student/T)) over the set's classes, times T^2 in
`canonical` (Hinton et al. 2015), without it in `paper`. The pixels never change, so the teacher's
backbone runs once a set, and its head on each batch's features.
"""

from __future__ import annotations

import torch
from torch import nn

from engine.methods.base import Trained
from engine.methods.context import Context
from engine.recipe.options import LwF as Recipe
from loaders.batch import Batch


class Method(Trained):
    recipe: Recipe

    def prepare(self, net: nn.Module, context: Context) -> None:
        super().prepare(net, context)
        self.teacher = context.logits(context.base, context.target)

    def loss(self, batch: Batch) -> torch.Tensor:
        from kernels.distill import distill_loss  # late, as in `base`

        return distill_loss(
            self.logits(batch),
            self.grouped(self.teacher(batch.index)),
            self.targets(batch),
            mask=self.mask_C,
            temperature=self.recipe.temperature,
            weight=self.recipe.weight,
            scale_by_t2=self.recipe.variant == "canonical",
        )
