"""LwF: distils the pretrained model's predictions on the downstream images (Li & Hoiem 2016).

Adds weight * KL(softmax(teacher/T) || softmax(student/T)) over the dataset's classes. `original`
multiplies it by T^2 (Hinton et al. 2015), `released` does not. Unless training augments images, the
teacher's backbone runs once per dataset, and only its head runs on each batch.
"""

from __future__ import annotations

import torch
from torch import nn

from engine.methods.base import Context, Trained
from engine.methods.options.lwf import Recipe
from loaders.batches import Batch


class Method(Trained):
    recipe: Recipe

    def prepare(self, net: nn.Module, context: Context) -> None:
        super().prepare(net, context)
        self.teacher = context.logits(context.base, context.target)

    def loss(self, batch: Batch) -> torch.Tensor:
        return self._losses(
            self.logits(batch),
            self.targets(batch),
            self.grouped(self.teacher(batch)),
            temperature=self.recipe.temperature,
            weight=self.recipe.weight,
            scale_by_t2=self.recipe.variant == "original",
        )
