"""TRACER: FLYP with distillation of both towers from a weighted average of all weights so far.

Asadollahzadeh et al. (2026) distil from a teacher that averages the whole training, so that the
teacher does not become the student, as a moving average does. With unit embeddings i, t of images
and captions, i', t' of the teacher, scales s, s' and row-wise softmax, TRACER adds to FLYP's loss

    weight * (KL(s' i' t'; s i t) + KL(s' i' t'; s i t') + contrastive(s i t', s t i')
              + features * (mean (i - i')^2 + mean (t - t')^2))
    + product * |P Q^T|

Each KL is the mean of both directions, from images to captions and from captions to images. The
third term contrasts the student's images with the teacher's captions and conversely. The last term
is CaRot's. `average=beta` is the paper's teacher (`teacher`). The first step distils nothing, since
its teacher is the student.

Terms and weights are those of the scripts for ViT-B/16 in the authors' release; we had no access to
the paper's text.

Differs from the authors' code: captions are drawn as FLYP's are here. Our campaigns' weight decay
is the scripts' 0.1; the paper has 0.01.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from engine import models
from engine.methods.beyond import carot, flyp
from engine.methods.beyond.options.tracer import Recipe
from loaders.batches import Batch


class Method(carot.Method):
    recipe: Recipe

    def loss(self, batch: Batch) -> torch.Tensor:
        recipe, pairs = self.recipe, self.pairs(batch)
        images_BE, texts_BE = flyp.embeddings(self.net, self.text, *pairs)
        copies: Any = self.teacher.copies  # a ModuleList loses the types of its members
        net, text, (log_scale_1,) = copies
        with torch.no_grad():
            images_t_BE, texts_t_BE = flyp.embeddings(net, text, *pairs)
            teacher_BB = models.logits(log_scale_1.exp() * images_t_BE, texts_t_BE, None)
        scale = self.log_scale_1.exp()
        student_BB = models.logits(scale * images_BE, texts_BE, None)
        to_texts_BB = models.logits(scale * images_BE, texts_t_BE, None)
        to_images_BB = models.logits(scale * texts_BE, images_t_BE, None)
        distances_B = (images_BE - images_t_BE).square().mean(1)
        distances_B = distances_B + (texts_BE - texts_t_BE).square().mean(1)
        distilled_B = (
            divergences(teacher_BB, student_BB, student_BB.T)
            + divergences(teacher_BB, to_texts_BB, to_images_BB)
            + (flyp.matched(to_texts_BB) + flyp.matched(to_images_BB)) / 2
            + recipe.features * distances_B
        )
        share = recipe.weight * (self.teacher.step_1 > 0)
        return flyp.contrastive(student_BB) + share * distilled_B + self.projection_terms()


def divergences(
    teacher_BB: torch.Tensor, to_texts_BB: torch.Tensor, to_images_BB: torch.Tensor
) -> torch.Tensor:
    """Mean [b] over both directions of KL(softmax of the teacher's row || softmax of the row)."""
    of_texts_BB, of_images_BB = (
        F.kl_div(row.log_softmax(1), target.log_softmax(1), reduction="none", log_target=True)
        for target, row in ((teacher_BB, to_texts_BB), (teacher_BB.T, to_images_BB))
    )
    return (of_texts_BB + of_images_BB).sum(1) / 2
