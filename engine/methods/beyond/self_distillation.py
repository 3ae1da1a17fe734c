"""Self-distillation: fine-tunes towards a teacher that is a moving average of the weights.

    loss_b = cross-entropy + weight * KL(softmax(teacher) || softmax(student))

over the dataset's classes, at temperature 1. This is the part of CaRot (Oh et al. 2024) and TRACER
(Asadollahzadeh et al. 2026) that needs no text: the logits come from a head instead of the captions
of a batch. `teacher` has both papers' averages. `carot` is the full method, for CLIP.
"""

from __future__ import annotations

import torch
from torch import nn

from engine.methods.base import Context, Trained
from engine.methods.beyond.options.self_distillation import Recipe
from engine.methods.beyond.teacher import Teacher
from loaders.batches import Batch


class Method(Trained):
    recipe: Recipe

    def prepare(self, net: nn.Module, context: Context) -> None:
        super().prepare(net, context)
        self.teacher = Teacher([net], self.recipe.average, context)

    def loss(self, batch: Batch) -> torch.Tensor:
        x = self.normalize(batch.images)
        with torch.no_grad():
            (teacher,) = self.teacher.copies
            target_BC = self.grouped(teacher(x))
        logits_BC, weight = self.grouped(self.net(x)), self.recipe.weight
        return self._losses(
            logits_BC, self.targets(batch), target_BC, temperature=1.0, weight=weight
        )

    def after_step(self) -> None:
        self.teacher.follow([self.net])
